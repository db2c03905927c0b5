"""One evaluation of runs on text: the controls' fits, then one clean pass over the tokens, then the spliced passes.

The clean pass serves the reconstruction metrics and the losses. Over the tokens with losses it goes to the end of the
model, and its states are kept until the means and the controls are known; over all others it ends at the last site.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch

from sae.base.progress import Progress, StopSignal
from sae.config import EvalConfig, HarvestConfig
from sae.data.packing import BEGINNING, Contexts
from sae.evaluation import bootstrap, downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.control_table import components_of, control_rows
from sae.evaluation.controls import Control, principal
from sae.evaluation.downstream import Batch, Downstream, Splice
from sae.evaluation.fits import TrainingRows, fit_controls
from sae.evaluation.reconstruction import Reconstruction, training_form
from sae.harvest.language_model import LanguageModel
from sae.harvest.rows import Rows
from sae.harvest.stream import KINDS, ORDINARY, OTHER_ROLE, Harvest
from sae.runs.text import Run, harvest_of

LOSS_CONTEXTS = 4  # contexts in a forward pass to the end of the model
KEPT_BYTES = 1 << 30
"""Memory for the states of clean passes; the passes over further tokens are made again when they are needed."""


Ends: TypeAlias = "tuple[tuple[str, ...], ...]"
"""Names of the sites that a run reads, then those of the sites that it reconstructs."""


class Evaluation:
    """One evaluation of runs of one model and data set.

    Args:
        lm: the language model.
        runs: what is evaluated, on the same tokens.
        settings: of the harvest.
        config: of the evaluation.
    """

    def __init__(
        self,
        lm: LanguageModel,
        runs: list[Run],
        settings: HarvestConfig,
        config: EvalConfig,
        stop: StopSignal,
        progress: Progress,
    ) -> None:
        self.lm, self.runs, self.settings, self.config = lm, runs, settings, config
        self.stop, self.progress = stop, progress
        self.draws = {"resamples": config.resamples, "seed": config.seed}
        self.harvest = self._harvest("heldout")
        self.downstream = Downstream(self.harvest, [tuple(run.targets) for run in runs])
        self.batches: list[Batch] = []
        """Batches with losses, their clean passes made."""
        self._kept = 0
        self._losses_left = config.downstream_tokens
        if config.downstream_tokens and (why := lm.traits.no_next_token) is not None:
            progress.say(f"This model predicts no next token ({why}): cross-entropies are left out.")
            self._losses_left = 0

    def reports(self) -> list[dict[str, Any]]:
        """All metrics of every run as JSON values."""
        pcas, controls = self._fits()
        groups, forms = self._reconstruct(pcas, controls)
        losses = self._splice_in(groups, controls)
        reports = []
        for index, run in enumerate(self.runs):
            ordinary, form = groups[index][ORDINARY], forms[index]
            k = run.config.sae.k
            sums = None if losses is None else losses[str(index)]
            report = {
                **ordinary.metrics(**self.draws),
                "densities": ordinary.densities(),
                "training_form": None if form is None else self._short(form),
                "baselines": ordinary.baselines(k=k, **self.draws) if ordinary.pca else None,
                "others": {
                    KINDS[kind]: self._short(group)
                    for kind, group in groups[index].items()
                    if kind != ORDINARY and (kind != OTHER_ROLE or self.settings.roles is not None)
                },
                "downstream": None,
            }
            if sums is not None:
                report["downstream"] = downstream.metrics(sums, **self.draws) | {"passes": self.downstream.record}
            elif self.config.downstream_tokens:
                report["downstream_missing"] = self.lm.traits.no_next_token
            if controls[index] is not None:
                report["controls"] = control_rows(ordinary, sums, k=k, **self.draws)
            reports.append(bootstrap.plain(report))
        return reports

    def _harvest(self, split: Any) -> Harvest:
        return harvest_of(self.runs, self.lm, split=split, settings=self.settings)

    def _fits(self) -> tuple[list[PCA | None], list[list[Control] | None]]:
        """Every run's PCA of training activations, and its controls; None where they are not asked for."""
        rows = self._training_rows() if self.config.pca_tokens else {}
        fitted = {ends[1]: PCA.fit(some.targets.split(8192)) for ends, some in rows.items()}
        pcas = [fitted.get(_ends(run)[1]) for run in self.runs]
        if self.config.controls == "all":
            names = ", ".join(run.folder.name for run in self.runs)
            self.progress.say(f"Training the encoder of a random dictionary beside {names}.")
        return pcas, [
            fit_controls(
                self.config.controls, run.model, pca, rows.get(_ends(run)), k=run.config.sae.k, seed=self.config.seed
            )
            for run, pca in zip(self.runs, pcas, strict=True)
        ]

    def _training_rows(self) -> dict[Ends, TrainingRows]:
        """Activations of the first training tokens, for the sites of every run."""
        harvest = self._harvest("train")
        kept: dict[tuple[tuple[str, ...], ...], tuple[Run, list[TrainingRows]]] = {
            _ends(run): (run, []) for run in self.runs
        }
        left = self.config.pca_tokens
        with self.progress.bar("Baseline", left, "tokens") as bar:
            for harvested in harvest.batches():
                rows = harvest.trained_on(harvested.rows)
                for run, parts in kept.values():
                    targets = run.targets_of(rows)[:left].cpu()
                    same = run.inputs == run.targets
                    parts.append(TrainingRows(targets if same else run.inputs_of(rows)[:left].cpu(), targets))
                added = min(left, len(rows.token))
                left -= added
                bar.advance(added)
                self.stop.check("nothing was written")
                if left <= 0:
                    break
        return {ends: _joined(parts) for ends, (_, parts) in kept.items()}

    def _reconstruct(
        self, pcas: list[PCA | None], controls: list[list[Control] | None]
    ) -> tuple[list[dict[int, Reconstruction]], list[Reconstruction | None]]:
        """Every run's reconstruction of ordinary tokens and, apart, of the others; and that of its training form."""
        groups: list[dict[int, Reconstruction]] = []
        forms: list[Reconstruction | None] = []
        for index, run in enumerate(self.runs):
            centre = run.model.dictionary.b.detach().cpu()
            group = {kind: Reconstruction(run.model, centre, None) for kind in range(len(KINDS))}
            groups.append(group | {ORDINARY: Reconstruction(run.model, centre, pcas[index], controls[index])})
            form = training_form(run.model, run.record, run.config.sae)
            forms.append(None if form is None else Reconstruction(form, centre, None))
        left = self.config.tokens
        with self.progress.bar("Evaluating", left, "tokens") as bar:
            for rows in self._heldout_rows():
                if left <= 0:  # further passes are for losses alone
                    continue
                for kind in range(len(KINDS)):
                    of_kind = (rows.kind == kind).nonzero().squeeze(1)
                    some = rows.select(of_kind[: left if kind == ORDINARY else None])
                    if not some.size:
                        continue
                    for run, group, form in zip(self.runs, groups, forms, strict=True):
                        x, target = run.inputs_of(some), run.targets_of(some)
                        group[kind].add(x, target, some.document)
                        if form is not None and kind == ORDINARY:
                            form.add(x, target, some.document)
                added = groups[0][ORDINARY].tokens - (self.config.tokens - left)
                left -= added
                bar.advance(added)
                self.stop.check("nothing was written")
                if left <= 0 and self._losses_left <= 0:
                    break
        return groups, forms

    def _heldout_rows(self) -> Iterator[Rows]:
        """The rows of every batch; those of the first tokens from passes to the end of the model, which are kept."""
        _ = self.harvest.norm_limits  # measured before the stream begins
        for contexts in self.harvest.contexts(BEGINNING):
            yield self._rows(contexts)

    def _rows(self, contexts: Contexts) -> Rows:
        parts: list[Rows] = []
        first, end = 0, len(contexts.tokens)
        while first < end and self._losses_left > 0:
            batch = self.downstream.batch(contexts.part(first, first + LOSS_CONTEXTS))
            parts.append(batch.rows())
            self._kept += batch.clean.nbytes
            if self._kept > KEPT_BYTES:
                batch.forget()
            self.batches.append(batch)
            self._losses_left -= int((batch.contexts.document >= 0).sum())
            first += LOSS_CONTEXTS
        if first < end:
            parts.append(self.harvest.rows(contexts.part(first, end)))
        return parts[0] if len(parts) == 1 else Rows.join(parts)

    def _splice_in(
        self, groups: list[dict[int, Reconstruction]], controls: list[list[Control] | None]
    ) -> dict[str, bootstrap.GroupSums] | None:
        """The losses of every run by its number; None where not asked for or not defined."""
        if not self.batches:
            return None
        splices: dict[str, Splice] = {}
        for index, run in enumerate(self.runs):
            ordinary = groups[index][ORDINARY]
            others = controls[index] or []
            if controls[index] is not None and ordinary.pca is not None:
                pca = ordinary.pca
                others = [*(principal(pca, m) for m in components_of(ordinary, run.config.sae.k)), *others]
            splices[str(index)] = Splice(run.model, run.inputs, run.targets, ordinary.mean.float(), others)
        with self.progress.bar("Splicing in", sum(b.contexts.tokens.numel() for b in self.batches), "tokens") as bar:
            for batch in self.batches:
                self.downstream.add(batch, splices)
                batch.forget()
                bar.advance(batch.contexts.tokens.numel())
                self.stop.check("nothing was written")
        return self.downstream.sums

    def _short(self, group: Reconstruction) -> dict[str, Any]:
        if group.tokens == 0:
            return {"tokens": 0}
        metrics = group.metrics(**self.draws)
        names = ("tokens", "fvu", "relative_error", "l0", "cosine", "reconstruction_bias")
        return {name: metrics[name] for name in names}


def _ends(run: Run) -> Ends:
    return tuple(site.name for site in run.inputs), tuple(site.name for site in run.targets)


def _joined(parts: list[TrainingRows]) -> TrainingRows:
    targets = torch.cat([part.targets for part in parts])
    same = all(part.inputs is part.targets for part in parts)
    return TrainingRows(targets if same else torch.cat([part.inputs for part in parts]), targets)
