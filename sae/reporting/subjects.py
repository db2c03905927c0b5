"""What a report says of one run, read from its folder; the evaluation is made where there is none yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.evaluation.matching.scores import Scores, read_scores
from sae.evaluation.replicates import Replicate, read_kept
from sae.evaluation.run import evaluate
from sae.evaluation.semantic.results import Row, read_semantic
from sae.evaluation.words import value_at
from sae.features.explain.explain import REPORT as NAMING
from sae.features.store.annotations import Annotations
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.models.saved import load, locate_run, read_config, read_description, read_report
from sae.runs.base import check_kind, kind_of
from sae.runs.metrics import METRICS, read_metrics

EVALUATION = "eval.json"


class Subject:
    """One run of a report.

    Args:
        run: a run folder.
        name: by which the report calls it.

    Raises:
        ConfigError, CorruptError: it is no finished run on text or on a file of activations.
    """

    def __init__(self, run: str | Path, name: str) -> None:
        self.folder, self.name = locate_run(run), name
        check_kind(self.folder, "language", "tensors")
        self.model = load(self.folder, device="cpu")
        self.record: dict[str, Any] = read_config(self.folder)
        self.kind = kind_of(self.folder)

    def evaluate(self, tell: Callable[[str], None]) -> None:
        """Make the run's eval.json unless it is there."""
        if not (self.folder / EVALUATION).is_file():
            tell(f"{self.name}: not evaluated yet; doing so with the defaults of sae eval.")
            evaluate(self.folder)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The run's eval.json."""
        return read_report(self.folder, EVALUATION)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; none for an imported run."""
        return read_metrics(self.folder) if (self.folder / METRICS).is_file() else []

    @cached_property
    def features(self) -> FeatureStore | None:
        """The collected features; None where there are none."""
        try:
            return FeatureStore(self.folder)
        except FeatureError:
            return None

    @cached_property
    def stability(self) -> Scores | None:
        """How stable its latents are, as `sae match` measured it; None where it did not."""
        return read_scores(self.folder, self.weights)

    @cached_property
    def replicates(self) -> dict[str, Replicate]:
        """The numbers of its evaluation over resampled documents; none of an evaluation that did not keep them."""
        kept = read_kept(self.folder, self.weights)
        numbers = {} if kept is None else kept.numbers
        # of the same evaluation as `numbers`
        return {name: r for name, r in numbers.items() if (value_at(self.numbers, name) or {}).get("value") == r.value}

    @cached_property
    def semantic(self) -> list[Row]:
        """What `sae measure` left; nothing where it did not run."""
        return read_semantic(self.folder)

    @property
    def weights(self) -> str:
        """SHA-256 of its weights."""
        return str(read_description(self.folder)["sha256"])

    @cached_property
    def annotations(self) -> Annotations:
        """What was said and measured of single latents."""
        return Annotations(self.folder)

    @cached_property
    def naming(self) -> dict[str, Any] | None:
        """The run's explain.json; None where its latents were not named."""
        return read_report(self.folder, NAMING) if (self.folder / NAMING).is_file() else None

    @property
    def language_model(self) -> str | None:
        """The language model that it reads, where it reads one."""
        return ((self.record.get("train") or {}).get("harvest") or {}).get("model")

    @property
    def variant(self) -> str:
        return (self.record.get("train") or {}).get("sae", {}).get("variant") or self.model.code.name

    @property
    def unit(self) -> str:
        """What one sample is: tokens or rows."""
        return "tokens" if self.kind == "language" else "rows"

    @property
    def samples(self) -> int | None:
        """Samples that it was trained on; None for an imported run."""
        training = self.record.get("training") or {}
        return training["steps"] * training["batch"] if "steps" in training else None


def open_subjects(runs: Sequence[str | Path]) -> list[Subject]:
    """The runs, each with a name of its own.

    Raises:
        ConfigError: none is given, or one is given twice; else as `Subject`.
    """
    if not runs:
        raise ConfigError("RUN: missing; a report needs at least one run folder")
    paths = [Path(run).expanduser().resolve() for run in runs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"RUN {twice}: given twice; name every run once")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    return [Subject(run, name) for run, name in zip(runs, names, strict=True)]


def random_atoms(like: Tensor, seed: int = 0) -> Tensor:
    """As many atoms in random directions, float32 [F, d]: the control of everything that geometry shows."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
