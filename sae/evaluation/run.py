"""`sae eval`: every metric of saved autoencoders on held-out documents, with baselines and intervals.

report = evaluate("runs/demo", EvalConfig(tokens=65_536))
report["fvu"]["value"], report["downstream"]["delta_ce"]["value"]
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.device import pick_device
from sae.base.files import remove_leftovers
from sae.base.launcher import refuse_ranks
from sae.base.locks import locked
from sae.base.progress import Progress, StopSignal
from sae.base.ranks import Ranks
from sae.config import ConfigError, EvalConfig, ImageEvalConfig, refuse_ignored, to_json
from sae.evaluation.images import evaluate_images
from sae.evaluation.language import Evaluation
from sae.evaluation.replicates import FILE as RESAMPLES
from sae.evaluation.replicates import write_kept
from sae.evaluation.tensors import evaluate_tensors
from sae.harvest.opening import opening
from sae.models.saved import publish_report, read_description
from sae.runs.base import kind_of
from sae.runs.text import Run, harvest_of, open_run


def evaluate(run: str | Path, config: EvalConfig | None = None) -> dict[str, Any]:
    """Evaluate the autoencoder saved in `run`, of whatever kind; also written to the run's eval.json.

    Of the settings, a run on images reads `resamples` and `seed`; its others are those of `evaluate_images`.

    Returns:
        JSON values; a metric with an interval is {"value", "low", "high"}.

    Raises:
        ConfigError, CorruptError, ModelError, DataError: the run, its model or the data cannot be used.

    Example:
        >>> import sae
        >>> config = sae.EvalConfig(tokens=1_024, downstream_tokens=512, pca_tokens=1_024, resamples=10)
        >>> report = sae.evaluate("runs/demo", config)
        >>> sorted(report["fvu"]), sae.Run("runs/demo").evaluation == report
        (['high', 'low', 'value'], True)
    """
    config, kind = config or EvalConfig(), kind_of(run)
    if kind != "language":
        refuse_ranks(f"sae eval of a run on {'a file of activations' if kind == 'tensors' else 'images'}")
    if kind == "image":
        why = f"{run} is a run on images; see sae image eval --help for its settings"
        read = ("resamples", "seed", *(["device"] if config.device == "cpu" else []))  # it runs on a CPU
        refuse_ignored(config, {f.name: why for f in dataclasses.fields(config) if f.name not in read})
        return evaluate_images(run, ImageEvalConfig(resamples=config.resamples, seed=config.seed))
    if kind == "tensors":
        return evaluate_tensors(run, config)
    return evaluate_all([run], config)[0]


def evaluate_all(runs: Sequence[str | Path], config: EvalConfig | None = None) -> list[dict[str, Any]]:
    """Evaluate runs of one model and data set on the same tokens: one harvest and one clean pass serve them all.

    Under torchrun the ranks share out the batches, and the result is that of a single process.

    Raises:
        ConfigError: the runs are of different models or data; else as `evaluate`.
    """
    config = config or EvalConfig()
    with Ranks.of_process(config.device) as ranks:
        return ranks.share(_evaluate_all(runs, config, ranks))


def _evaluate_all(runs: Sequence[str | Path], config: EvalConfig, ranks: Ranks) -> list[dict[str, Any]]:
    """The reports, in the first rank; no one reads what the others return."""
    device = pick_device(config.device)
    opened = [open_run(run, device=device) for run in runs]
    settings = opened[0].settings(config.dataset, config.text_field)
    for run in opened[1:]:
        _check_same(opened[0], run)
    begun = time.perf_counter()
    local = [run.folder for name, run in zip(runs, opened, strict=True) if run.folder == Path(name).expanduser()]
    with contextlib.ExitStack() as locks, StopSignal() as stop, Progress() as progress:
        for folder in dict.fromkeys(local) if ranks.first else ():
            locks.enter_context(locked(folder, "eval", "evaluating this run"))
            for name in ("eval.json", RESAMPLES):
                remove_leftovers(folder, name)
        lm = opened[0].load_language_model(device)
        if config.dataset is not None:
            documents = harvest_of(opened, lm, split="heldout", settings=settings).documents
            progress.say(opening(documents, lm.tokenizer, settings, beginning=lm.beginning))
        evaluation = Evaluation(lm, opened, settings, config, stop, progress, ranks)
        reports = evaluation.reports()
    if not ranks.first:
        return []
    seconds = round(time.perf_counter() - begun, 1)
    done = []
    for name, run, report, kept in zip(runs, opened, reports, evaluation.kept, strict=True):
        sites = {"site": ", ".join(site.name for site in run.inputs)}
        if run.targets != run.inputs:
            sites["target_site"] = ", ".join(site.name for site in run.targets)
        variant = run.config.sae.variant
        head = {"run": str(name), "variant": variant, **sites, "dataset": settings.dataset}
        if (origin := run.record.get("imported")) is not None:
            head |= {"tool": origin["tool"], "format": origin["format"]}
        done.append({**head, **report, "seconds": seconds})
        if run.folder == Path(name).expanduser():
            # first, so that an eval.json never stands beside the resamples of an earlier one for long
            write_kept(run.folder, str(read_description(run.folder)["sha256"]), kept)
            publish_report(run.folder, "eval.json", done[-1])
    return done


def _check_same(first: Run, other: Run) -> None:
    """Refuse runs whose activations cannot come from one harvest."""
    mine, theirs = (to_json(run.config.harvest) for run in (first, other))
    for name, value in mine.items():
        if name not in ("site", "target_site", "layer", "store_precision") and theirs[name] != value:
            raise ConfigError(
                f"{other.folder}: {name} was {theirs[name]!r}, in {first.folder} {value!r}; evaluate them one by one"
            )
    here, there = (run.record["harvest"].get("beginning") for run in (first, other))
    if here != there:
        raise ConfigError(
            f"{other.folder}: segments began with {there}, in {first.folder} with {here}; evaluate them one by one"
        )
