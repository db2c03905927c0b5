"""`sae measure`: what the latents of a run mean and do, beside controls, with intervals.

report = measure("runs/demo", MeasureConfig(measures=("probing",)))
[row for row in report["rows"] if row["subject"] == "SAE"]
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.base.device import pick_device
from sae.base.files import CorruptError, remove_leftovers
from sae.base.locks import locked
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, MeasureConfig, to_json
from sae.config.measuring import ON_TEXTS, READERS
from sae.evaluation.baselines import PCA
from sae.evaluation.random_dictionary import train_random_dictionary
from sae.evaluation.semantic import absorption, attributes, bases
from sae.evaluation.semantic.bases import Basis
from sae.evaluation.semantic.cities import CITIES
from sae.evaluation.semantic.intervals import Resamples
from sae.evaluation.semantic.prompts import Reader
from sae.evaluation.semantic.reading import pooled, read
from sae.evaluation.semantic.removal import scr_rows, tpp_rows
from sae.evaluation.semantic.results import RECORD, SAE, Row, rows_of
from sae.evaluation.semantic.sparse_probing import Labelled, probing_rows
from sae.evaluation.semantic.tasks import Task, split, tasks_of, unusable
from sae.evaluation.semantic.words import single_token_words
from sae.harvest.language_model import LanguageModel
from sae.harvest.sites import SiteError
from sae.models.saved import publish_report, read_report
from sae.runs.base import check_language
from sae.runs.text import Run, open_run


def measure(run: str | Path, config: MeasureConfig | None = None) -> dict[str, Any]:
    """Measure what the latents of a run on text mean and do; also written to the run's semantic.json.

    Each measure is kept as soon as it is finished. Measures that the run was given before and that are not asked for
    again stay as they are.

    Args:
        run: run folder, or a hub repository that holds one.
        config: which measures, and how much of each.

    Returns:
        JSON values: "rows" (the fields of `sae.evaluation.semantic.results.Row` each), "measured" (measure -> settings
        and seconds), "left_out" (task -> why).

    Raises:
        ConfigError, CorruptError, ModelError, SiteError, FetchError: the run, its model, the labels or the built-in
            texts cannot be used.

    Example:
        >>> import sae
        >>> config = sae.MeasureConfig(measures=("absorption",), words=400, control_tokens=1_024, resamples=10)
        >>> report = sae.measure("runs/demo", config)
        >>> sorted(report)
        ['left_out', 'measured', 'rows', 'run', 'site']
    """
    config = config or MeasureConfig()
    check_language(run, "measures of meaning")
    tasks = tasks_of(config)
    device = pick_device(config.device)
    opened = open_run(run, device=device)
    local = opened.folder == Path(run).expanduser()
    lock = locked(opened.folder, "measure", "measuring this run") if local else contextlib.nullcontext()
    with StopSignal() as stop, Progress() as progress, lock:
        report = _empty()
        if local:
            remove_leftovers(opened.folder, RECORD)
            report = _before(opened.folder)
        report |= {"run": str(run), "site": ", ".join(site.name for site in opened.targets)}
        lm = opened.load_language_model(device)
        measuring = _Measuring(
            opened, lm, config, tasks, progress, lambda: stop.check(f"finished ones are in {RECORD}")
        )
        for name in config.measures:
            begun = time.perf_counter()
            rows, counts, left_out = measuring.of(name)
            _replace(report, name, rows, left_out)
            seconds = round(time.perf_counter() - begun, 1)
            report["measured"][name] = {**_settings(config, name), **counts, "seconds": seconds}
            if local:
                publish_report(opened.folder, RECORD, report)
    return report


class Numbers(NamedTuple):
    """What one measure gives."""

    rows: list[Row]
    counts: dict[str, int]
    left_out: dict[str, str]
    """Task -> why it has no rows."""


class _Measuring:
    """The measures of one run; what several of them need is made once."""

    def __init__(
        self,
        run: Run,
        lm: LanguageModel,
        config: MeasureConfig,
        tasks: list[Task],
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self.run, self.lm, self.config, self.tasks, self.progress, self.check = run, lm, config, tasks, progress, check
        self._labelled: list[Labelled] | None = None
        self._bases = self._make_bases()

    def of(self, name: str) -> Numbers:
        """The rows of one measure."""
        if name in ON_TEXTS:
            rows_for = {"probing": probing_rows, "scr": scr_rows, "tpp": tpp_rows}[name]
            return self._on_texts(name, rows_for, self.config.k if name == "probing" else self.config.latents)
        return {"absorption": self._absorption, "attributes": self._attributes}[name]()

    def _make_bases(self) -> dict[str, Basis]:
        """The SAE and all controls, fitted to training tokens."""
        model, config = self.run.model, self.config
        inputs, targets = self._training_rows()
        count = len(inputs)
        sae = bases.of_autoencoder(model)
        l0 = max(1, round(sae.encode(inputs, targets).nnz / count))
        pca = PCA.fit([targets])
        self._mean = mean = pca.mean.float()
        made = [
            sae,
            bases.chosen_by_chance(sae),
            bases.raw_channels(mean),
            bases.principal_components(pca),
            bases.random_atoms(model, mean, min(l0, model.width), config.seed),
            bases.shuffled(sae),
        ]
        if config.controls == "all":
            self.progress.say(f"Training the encoder of a random dictionary on {count:,} tokens")
            trained = train_random_dictionary(inputs, targets, model, k=l0, seed=config.seed)
            made.append(bases.trained_random(trained.model.to(model.W_enc.device)))
        return {basis.name: basis for basis in made}

    def _training_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        harvest = self.run.harvest(self.lm, split="train")
        inputs, targets, left = [], [], self.config.control_tokens
        with self.progress.bar("Fitting controls", left, "tokens") as bar:
            for step in harvest.batches():
                self.check()
                rows = harvest.trained_on(step.rows).cpu()
                inputs.append(self.run.inputs_of(rows)[:left])
                targets.append(self.run.targets_of(rows)[:left])
                bar.advance(len(inputs[-1]))
                left -= len(inputs[-1])
                if left <= 0:
                    break
        return torch.cat(inputs), torch.cat(targets)

    def _choose(self, *names: str) -> list[Basis]:
        return [basis for name, basis in self._bases.items() if name in (SAE, bases.RANDOM, *names)]

    @property
    def _read_from(self) -> list[Basis]:
        """Subjects of the measures that choose latents for a probe."""
        return self._choose(bases.RANDOM_LATENTS, bases.RAW, bases.COMPONENTS, bases.RANDOM_ATOMS)

    def _labelled_texts(self) -> list[Labelled]:
        """All tasks' texts, each text read once."""
        if self._labelled is not None:
            return self._labelled
        number = {text: i for i, text in enumerate(dict.fromkeys(text for task in self.tasks for text in task.texts))}
        with self.progress.bar("Reading labelled texts", len(number), "texts") as bar:
            rows = read(self.run, self.lm, list(number), tokens=self.config.document_tokens, advance=self._advance(bar))
        raw = bases.Basis("", lambda inputs, targets: targets.numpy(), np.empty((rows.targets.shape[1], 0)))
        activations = pooled(raw, rows)
        codes: dict[str, np.ndarray] = {}
        for basis in self._read_from:
            codes[basis.name] = codes[SAE] if basis.name == bases.RANDOM_LATENTS else pooled(basis, rows)
        self._labelled = [
            self._labelled_task(task, np.array([number[text] for text in task.texts]), activations, codes)
            for task in self.tasks
        ]
        return self._labelled

    def _labelled_task(
        self, task: Task, places: np.ndarray, activations: np.ndarray, codes: dict[str, np.ndarray]
    ) -> Labelled:
        cells = task.labels if task.other is None else np.char.add(np.char.add(task.labels, "/"), task.other)
        training = split(cells, np.random.default_rng(self.config.seed))
        of_task = {name: z[places] for name, z in codes.items()}
        return Labelled(task.name, task.labels, training, activations[places], of_task, task.other)

    def _resamples(self, units: int) -> Resamples:
        return Resamples.of(units, count=self.config.resamples, seed=self.config.seed)

    def _on_texts(self, name: str, rows_for: Callable[..., list[Row]], ks: tuple[int, ...]) -> Numbers:
        reasons = {task.name: unusable(name, task) for task in self.tasks}
        usable = [task for task in self._labelled_texts() if reasons[task.task] is None]
        rows: list[Row] = []
        with self.progress.bar(f"Measuring {name}", len(usable), "tasks") as bar:
            for task in usable:
                self.check()
                resamples = self._resamples(int((~task.training).sum()))
                rows += rows_for(task, self._read_from, ks, resamples, self.config.seed)
                bar.advance(1)
        # of the built-in tasks, each measure has its own
        told = reasons if self.config.labels is not None else {}
        left_out = {f"{name}: {task}": why for task, why in told.items() if why is not None}
        return Numbers(rows, {"texts": sum(len(task.labels) for task in usable)}, left_out)

    def _absorption(self) -> Numbers:
        words = single_token_words(self.lm.tokenizer, self.config.words, self.config.seed)
        if not words:
            return Numbers([], {"words": 0}, {"absorption": "the tokenizer has no word of a to z that is one token"})
        texts = [absorption.TEMPLATE.format(word=word) for word in words]
        with self.progress.bar("Reading words", len(texts), "words") as bar:
            rows = read(self.run, self.lm, texts, tokens=64, last_only=True, advance=self._advance(bar))
        activations = (rows.targets - self._mean).numpy()
        training = split(np.array([word[0] for word in words]), np.random.default_rng(self.config.seed))
        letters = absorption.letters_of(words, activations, training)
        counts = {"words": len(words), "letters": len(letters)}
        if not letters:
            why = f"no letter's probe reaches an F1 of {absorption.LEAST_F1} on held-out words"
            return Numbers([], counts, {"absorption": why})
        subjects = self._choose(bases.SHUFFLED, bases.RANDOM_ATOMS)
        codes: dict[str, np.ndarray] = {}
        for basis in subjects:
            codes[basis.name] = codes[SAE] if basis.name == bases.SHUFFLED else pooled(basis, rows)
        resamples = self._resamples(int((~training).sum()))
        rows_made = absorption.absorption_rows(letters, activations, training, codes, subjects, resamples)
        return Numbers(rows_made, counts, {})

    def _attributes(self) -> Numbers:
        if (reason := self.lm.traits.no_next_token) is not None:
            return Numbers([], {}, {"attributes": f"the model predicts no next token ({reason})"})
        subjects = self._choose(bases.RANDOM_LATENTS, bases.COMPONENTS, bases.RANDOM_ATOMS)
        total = len(CITIES.templates) * len(self.config.latents) * len(subjects)
        try:
            reader = Reader(self.run, self.lm, CITIES)
            experiment, counts = attributes.prepare(reader, pairs=self.config.pairs, seed=self.config.seed)
        except (ConfigError, SiteError) as error:
            return Numbers([], {}, {"attributes": str(error)})
        with self.progress.bar("Moving attributes", total, "changes") as bar:
            rows = attributes.attribute_rows(
                reader,
                experiment,
                subjects,
                self.config.latents,
                self._resamples(len(experiment.pairs.base)),
                self.config.seed,
                self._advance(bar),
            )
        return Numbers(rows, counts, {})

    def _advance(self, bar: Any) -> Callable[[int], None]:
        def advance(count: int) -> None:
            bar.advance(count)
            self.check()

        return advance


def _settings(config: MeasureConfig, name: str) -> dict[str, Any]:
    """The settings that a measure reads, as JSON values."""
    unread = {setting for setting, readers in READERS.items() if name not in readers}
    left = {"measures", "device", *unread}
    return {setting: value for setting, value in to_json(config).items() if setting not in left}


def _empty() -> dict[str, Any]:
    return {"rows": [], "measured": {}, "left_out": {}}


def _before(folder: Path) -> dict[str, Any]:
    """What was measured of the run before; nothing where its file is missing, damaged or of other weights."""
    if not (folder / RECORD).is_file():
        return _empty()
    try:
        report = read_report(folder, RECORD)
        rows_of(report)
    except CorruptError:
        return _empty()
    return {name: report[name] for name in ("rows", "measured", "left_out")}


def _replace(report: dict[str, Any], name: str, rows: list[Row], left_out: dict[str, str]) -> None:
    """Put a measure's rows in place of earlier ones."""
    report["rows"] = [row for row in report["rows"] if not row["measure"].startswith(f"{name}.")]
    report["rows"] += [row._asdict() for row in rows]
    kept = {task: why for task, why in report["left_out"].items() if task.partition(":")[0] != name}
    report["left_out"] = kept | left_out
