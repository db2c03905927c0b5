"""`sae eval`: every metric of a saved autoencoder on held-out documents, with baselines and intervals.

report = evaluate("runs/demo", EvalConfig(tokens=65_536))
report["fvu"]["value"], report["downstream"]["delta_ce"]["value"]
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.config import EvalConfig, HarvestConfig
from sae.data.documents import open_documents
from sae.data.packing import BEGINNING
from sae.device import pick_device
from sae.evaluation import downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import to_json
from sae.evaluation.reconstruction import Reconstruction
from sae.files import publish_json
from sae.harvest.language_model import LanguageModel
from sae.harvest.sites import Site
from sae.harvest.stream import KINDS, ORDINARY, Harvest, Rows
from sae.models.autoencoder import Autoencoder
from sae.progress import Progress, StopSignal
from sae.runs import open_run

LOGIT_CONTEXTS = 4  # contexts in a forward pass with logits, whose vocabulary is what fills the memory


def evaluate(run: str | Path, config: EvalConfig | None = None) -> dict[str, Any]:
    """Evaluate the autoencoder saved in `run`; also written to the run's eval.json.

    Returns:
        JSON values; a metric with an interval is {"value", "low", "high"}.

    Raises:
        ConfigError, CorruptError, ModelError, DataError: the run, its model or the data cannot be used.
    """
    config = config or EvalConfig()
    device = pick_device(config.device)
    opened = open_run(run, device=device)
    settings = opened.settings(config.dataset, config.text_field)
    begun = time.perf_counter()
    with StopSignal() as stop, Progress() as progress:
        lm = opened.load_language_model(device)
        evaluation = _Evaluation(lm, opened.sites, opened.model, settings, opened.record, config, stop, progress)
        report = {"run": str(run), "site": opened.sites[0].name, "dataset": settings.dataset, **evaluation.report()}
    report["seconds"] = round(time.perf_counter() - begun, 1)
    if opened.folder == Path(run).expanduser():
        publish_json(opened.folder / "eval.json", report)
    return report


class _Evaluation:
    """One evaluation: the PCA baseline, then reconstruction, then the language model's loss."""

    def __init__(
        self,
        lm: LanguageModel,
        sites: list[Site],
        model: Autoencoder,
        settings: HarvestConfig,
        record: dict[str, Any],
        config: EvalConfig,
        stop: StopSignal,
        progress: Progress,
    ) -> None:
        self.lm, self.sites, self.model, self.settings = lm, sites, model, settings
        self.record, self.config, self.stop, self.progress = record, config, stop, progress
        self.draws = {"resamples": config.resamples, "seed": config.seed}

    def report(self) -> dict[str, Any]:
        """All metrics as JSON values."""
        pca = self._fit_pca() if self.config.pca_tokens else None
        groups = self._reconstruct(pca)
        ordinary = groups[ORDINARY]
        report = {
            **ordinary.metrics(**self.draws),
            "densities": ordinary.densities(),
            "baselines": ordinary.baselines(k=self.record["train"]["sae"]["k"], **self.draws) if pca else None,
            "others": {KINDS[kind]: self._short(group) for kind, group in groups.items() if kind != ORDINARY},
            "downstream": self._downstream(ordinary.mean),
        }
        return to_json(report)

    def _harvest(self, split: str) -> Harvest:
        documents = open_documents(
            self.settings.dataset,
            text_field=self.settings.text_field,
            split=split,  # pyright: ignore[reportArgumentType]
            heldout=self.settings.heldout,
        )
        harvest = Harvest(self.lm, self.sites, documents, self.settings)
        harvest.norm_limits = self.record["harvest"]["norm_limits"]
        return harvest

    def _fit_pca(self) -> PCA:
        """Principal components of training activations."""
        harvest = self._harvest("train")

        def batches() -> Iterator[Tensor]:
            left = self.config.pca_tokens
            with self.progress.bar("Baseline", left, "tokens") as bar:
                for harvested in harvest.batches():
                    rows = harvest.trained_on(harvested.rows).activations[self.sites[0].name][:left].float().cpu()
                    yield rows
                    left -= len(rows)
                    bar.advance(len(rows))
                    self.stop.check("nothing was written")
                    if left <= 0:
                        return

        return PCA.fit(batches())

    def _reconstruct(self, pca: PCA | None) -> dict[int, Reconstruction]:
        """Reconstruction of ordinary tokens and, apart, of BOS, special and sink tokens."""
        harvest = self._harvest("heldout")
        centre = self.model.dictionary.b.detach().cpu()
        groups = {
            kind: Reconstruction(self.model, centre, pca if kind == ORDINARY else None) for kind in range(len(KINDS))
        }
        left = self.config.tokens
        with self.progress.bar("Evaluating", left, "tokens") as bar:
            for harvested in harvest.batches():
                for kind, group in groups.items():
                    rows = _of_kind(harvested.rows, kind, left if kind == ORDINARY else None)
                    if len(rows.token):
                        group.add(rows.activations[self.sites[0].name], rows.document)
                added = groups[ORDINARY].tokens - (self.config.tokens - left)
                left -= added
                bar.advance(added)
                self.stop.check("nothing was written")
                if left <= 0:
                    break
        return groups

    def _short(self, group: Reconstruction) -> dict[str, Any]:
        if group.tokens == 0:
            return {"tokens": 0}
        metrics = group.metrics(**self.draws)
        return {name: metrics[name] for name in ("tokens", "fvu", "relative_error", "l0", "cosine")}

    def _downstream(self, mean: Tensor) -> dict[str, Any] | None:
        """Cross-entropies with the reconstruction spliced in; None where it was not asked for or is not defined."""
        if not self.config.downstream_tokens:
            return None
        self.settings = dataclasses.replace(self.settings, contexts=LOGIT_CONTEXTS)
        harvest = self._harvest("heldout")
        if not downstream.can_predict(harvest):
            self.progress.say("This model predicts no next token: cross-entropies are left out.")
            return None
        batches = downstream.enough(harvest.contexts(BEGINNING), self.config.downstream_tokens)
        total = sum(contexts.tokens.numel() for contexts in batches)
        with self.progress.bar("Splicing in", total, "tokens") as bar:

            def advance(tokens: int) -> None:
                bar.advance(tokens)
                self.stop.check("nothing was written")

            sums = downstream.measure(harvest, self.model, mean, batches, advance)
        return downstream.metrics(sums, **self.draws)


def _of_kind(rows: Rows, kind: int, limit: int | None) -> Rows:
    return rows.select((rows.kind == kind).nonzero().squeeze(1)[:limit])
