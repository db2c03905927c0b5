"""`sae eval`: every metric of saved autoencoders on held-out documents, with baselines and intervals.

report = evaluate("runs/demo", EvalConfig(tokens=65_536))
report["fvu"]["value"], report["downstream"]["delta_ce"]["value"]
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.device import pick_device
from sae.base.files import publish_json
from sae.base.launcher import refuse_ranks
from sae.base.progress import Progress, StopSignal
from sae.base.ranks import Ranks
from sae.config import ConfigError, EvalConfig, HarvestConfig, ImageEvalConfig, refuse_ignored, to_json
from sae.data.packing import BEGINNING
from sae.evaluation import bootstrap, downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.images import evaluate_images
from sae.evaluation.reconstruction import Reconstruction, training_form
from sae.evaluation.sharing import shared
from sae.evaluation.tensors import evaluate_tensors
from sae.harvest.language_model import LanguageModel
from sae.harvest.opening import opening
from sae.harvest.stream import KINDS, ORDINARY, OTHER_ROLE, Harvest
from sae.runs.base import kind_of
from sae.runs.text import Run, harvest_of, open_run

LOGIT_CONTEXTS = 4  # contexts in a forward pass with logits, whose vocabulary is what fills the memory


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
    with StopSignal() as stop, Progress() as progress:
        lm = opened[0].load_language_model(device)
        if config.dataset is not None:
            documents = harvest_of(opened, lm, split="heldout", settings=settings).documents
            progress.say(opening(documents, lm.tokenizer, settings, beginning=lm.beginning))
        reports = _Evaluation(lm, opened, settings, config, stop, progress, ranks).reports()
    if not ranks.first:
        return []
    seconds = round(time.perf_counter() - begun, 1)
    done = []
    for name, run, report in zip(runs, opened, reports, strict=True):
        sites = {"site": ", ".join(site.name for site in run.inputs)}
        if run.targets != run.inputs:
            sites["target_site"] = ", ".join(site.name for site in run.targets)
        variant = run.config.sae.variant
        head = {"run": str(name), "variant": variant, **sites, "dataset": settings.dataset}
        if (origin := run.record.get("imported")) is not None:
            head |= {"tool": origin["tool"], "format": origin["format"]}
        done.append({**head, **report, "seconds": seconds})
        if run.folder == Path(name).expanduser():
            publish_json(run.folder / "eval.json", done[-1])
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


class _Evaluation:
    """One evaluation: the PCA baselines, then reconstruction, then the language model's loss."""

    def __init__(
        self,
        lm: LanguageModel,
        runs: list[Run],
        settings: HarvestConfig,
        config: EvalConfig,
        stop: StopSignal,
        progress: Progress,
        ranks: Ranks,
    ) -> None:
        self.lm, self.runs, self.settings, self.config = lm, runs, settings, config
        self.stop, self.progress, self.ranks = stop, progress, ranks
        self.draws = {"resamples": config.resamples, "seed": config.seed}

    def reports(self) -> list[dict[str, Any]]:
        """All metrics of every run as JSON values; in the first rank alone."""
        pcas = self._fit_pcas() if self.config.pca_tokens else None
        groups, forms = self._reconstruct(pcas)
        losses = self._downstream(self.ranks.share([group[ORDINARY].mean for group in groups]))
        reports: list[dict[str, Any]] = []
        if not self.ranks.first:
            return reports
        for index, run in enumerate(self.runs):
            ordinary, form = groups[index][ORDINARY], forms[index]
            k = run.config.sae.k
            report = {
                **ordinary.metrics(**self.draws),
                "densities": ordinary.densities(),
                "training_form": None if form is None else self._short(form),
                "baselines": ordinary.baselines(k=k, **self.draws) if pcas else None,
                "others": {
                    KINDS[kind]: self._short(group)
                    for kind, group in groups[index].items()
                    if kind != ORDINARY and (kind != OTHER_ROLE or self.settings.roles is not None)
                },
                "downstream": None if losses is None else losses[index],
            }
            if losses is None and self.config.downstream_tokens:
                report["downstream_missing"] = self.lm.traits.no_next_token
            reports.append(bootstrap.plain(report))
        return reports

    def _harvest(self, split: Any, settings: HarvestConfig | None = None) -> Harvest:
        return harvest_of(self.runs, self.lm, split=split, settings=settings or self.settings)

    def _fit_pcas(self) -> dict[tuple[str, ...], PCA]:
        """Principal components of training activations, for every place that some run reconstructs."""
        harvest = self._harvest("train")
        kept: dict[tuple[str, ...], dict[int, Tensor]] = {_places(run): {} for run in self.runs}
        left = self.config.pca_tokens
        with self.progress.bar("Baseline", left, "tokens") as bar:
            for batch in shared(harvest, self.ranks):
                trained = batch.select(harvest.trained(batch.kind).nonzero().squeeze(1)[:left])
                if trained.rows is not None:
                    for run in {_places(run): run for run in self.runs}.values():
                        kept[_places(run)][batch.number] = run.targets_of(trained.rows).cpu()
                left -= len(trained.document)
                bar.advance(len(trained.document))
                self._check_stop(batch.number)
                if left <= 0:
                    break
        for parts in kept.values():
            self.ranks.merge(parts, parts.update)
        # the fit is quick beside the passes, so the first rank does it for all
        fitted = {}
        if self.ranks.first:
            fitted = {p: PCA.fit([parts[number] for number in sorted(parts)]) for p, parts in kept.items()}
        return self.ranks.share(fitted)

    def _check_stop(self, number: int) -> None:
        """Stop all ranks behind the batch of that number, where a signal came to any of them."""
        if self.ranks.ends_round(number) and self.ranks.stopping(self.stop):
            self.stop.check("nothing was written")

    def _reconstruct(
        self, pcas: dict[tuple[str, ...], PCA] | None
    ) -> tuple[list[dict[int, Reconstruction]], list[Reconstruction | None]]:
        """Every run's reconstruction of ordinary tokens and, apart, of the others; and that of its training form."""
        harvest = self._harvest("heldout")
        groups: list[dict[int, Reconstruction]] = []
        forms: list[Reconstruction | None] = []
        for run in self.runs:
            centre = run.model.dictionary.b.detach().cpu()
            pca = None if pcas is None else pcas[_places(run)]
            kinds = range(len(KINDS))
            groups.append({k: Reconstruction(run.model, centre, pca if k == ORDINARY else None) for k in kinds})
            form = training_form(run.model, run.record, run.config.sae)
            forms.append(None if form is None else Reconstruction(form, centre, None))
        left = self.config.tokens
        with self.progress.bar("Evaluating", left, "tokens") as bar:
            for batch in shared(harvest, self.ranks):
                for kind in range(len(KINDS)):
                    of_kind = (batch.kind == kind).nonzero().squeeze(1)
                    part = batch.select(of_kind[: left if kind == ORDINARY else None])
                    if not len(part.document):
                        continue
                    for run, group, form in zip(self.runs, groups, forms, strict=True):
                        measured = [group[kind], *([form] if form is not None and kind == ORDINARY else [])]
                        for reconstruction in measured:
                            if part.rows is None:
                                reconstruction.see(part.document)
                            else:
                                x, target = run.inputs_of(part.rows), run.targets_of(part.rows)
                                reconstruction.add(x, target, part.document)
                added = groups[0][ORDINARY].tokens - (self.config.tokens - left)
                left -= added
                bar.advance(added)
                self._check_stop(batch.number)
                if left <= 0:
                    break
        for reconstruction in [*(r for group in groups for r in group.values()), *(f for f in forms if f is not None)]:
            self.ranks.merge(reconstruction.parts(), reconstruction.merge)
        return groups, forms

    def _short(self, group: Reconstruction) -> dict[str, Any]:
        if group.tokens == 0:
            return {"tokens": 0}
        metrics = group.metrics(**self.draws)
        return {name: metrics[name] for name in ("tokens", "fvu", "relative_error", "l0", "cosine")}

    def _downstream(self, means: list[Tensor]) -> list[dict[str, Any]] | None:
        """Cross-entropies with each reconstruction spliced in; None where not asked for or not defined."""
        if not self.config.downstream_tokens:
            return None
        harvest = self._harvest("heldout", dataclasses.replace(self.settings, contexts=LOGIT_CONTEXTS))
        if (why := self.lm.traits.no_next_token) is not None:
            self.progress.say(f"This model predicts no next token ({why}): cross-entropies are left out.")
            return None
        batches = downstream.enough(harvest.contexts(BEGINNING), self.config.downstream_tokens)
        total = sum(contexts.tokens.numel() for contexts in batches)
        subjects = {
            str(index): downstream.Splice(run.model, run.inputs, run.targets, mean.float())
            for index, (run, mean) in enumerate(zip(self.runs, means, strict=True))
        }
        with self.progress.bar("Splicing in", total, "tokens") as bar:
            batch = itertools.count()

            def advance(tokens: int) -> None:
                bar.advance(tokens)
                self._check_stop(next(batch))

            sums = downstream.measure(harvest, subjects, batches, advance, self.ranks)
        if not self.ranks.first:
            return None
        return [downstream.metrics(sums[name], **self.draws) for name in subjects]


def _places(run: Run) -> tuple[str, ...]:
    return tuple(site.name for site in run.targets)
