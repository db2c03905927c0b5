"""One evaluation of runs on text: the controls' fits, then one clean pass over the tokens, then the spliced passes.

The clean pass serves the reconstruction metrics and the losses. Over the tokens with losses it goes to the end of the
model, and its states are kept until the means and the controls are known; over all others it ends at the last site.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch

from sae.base.progress import Progress, StopSignal
from sae.base.ranks import ALONE, Ranks
from sae.config import EvalConfig, HarvestConfig, to_json
from sae.data.packing import BEGINNING, Contexts
from sae.evaluation import bootstrap, downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.control_table import components_of, control_losses, control_rows
from sae.evaluation.controls import Control, RandomDictionary, TrainingRows, controls_of, principal
from sae.evaluation.downstream import Batch, Downstream, Splice
from sae.evaluation.random_dictionary import train_random_dictionary
from sae.evaluation.reconstruction import Reconstruction, training_form
from sae.evaluation.replicates import Kept, kept_of
from sae.evaluation.sharing import shared
from sae.evaluation.token_classes import TokenClasses, added_by_class
from sae.harvest.language_model import LanguageModel
from sae.harvest.rows import Rows
from sae.harvest.stream import KINDS, ORDINARY, OTHER_ROLE, Harvest
from sae.runs.text import Run, harvest_of

LOSS_CONTEXTS = 4  # contexts in a forward pass to the end of the model
KEPT_BYTES = 1 << 30
"""Memory for the states of clean passes; the passes over further tokens are made again when they are needed."""


Ends: TypeAlias = "tuple[tuple[str, ...], ...]"
"""Names of the sites that a run reads, then those of the sites that it reconstructs."""


class Unit(NamedTuple):
    """The tokens of one forward pass."""

    contexts: Contexts
    batch: Batch | None
    """The same tokens, where there are losses."""
    ends_batch: bool
    """Whether it is the last one of a batch of the harvest."""
    ends_losses: bool
    """Whether no losses follow."""


class Evaluation:
    """One evaluation of runs of one model and data set.

    Args:
        lm: the language model.
        runs: what is evaluated, on the same tokens.
        settings: of the harvest.
        config: of the evaluation.
        ranks: processes that share out the batches; the first one has the reports.
    """

    def __init__(
        self,
        lm: LanguageModel,
        runs: list[Run],
        settings: HarvestConfig,
        config: EvalConfig,
        stop: StopSignal,
        progress: Progress,
        ranks: Ranks = ALONE,
    ) -> None:
        self.lm, self.runs, self.settings, self.config = lm, runs, settings, config
        self.stop, self.progress, self.ranks = stop, progress, ranks
        self.draws = {"resamples": config.resamples, "seed": config.seed}
        self.harvest = self._harvest("heldout")
        self.classes = TokenClasses(lm.tokenizer)
        self.downstream = Downstream(self.harvest, [tuple(run.targets) for run in runs], self.classes)
        self.kept: list[Kept] = []
        """What comparisons need of every run, once there are `reports`; in the first rank alone."""
        self.batches: list[Batch] = []
        """Batches with losses, the first of all; the clean passes of this process's own ones are made."""
        self._kept = 0
        self._loss_tokens = config.downstream_tokens
        if config.downstream_tokens and (why := lm.traits.no_next_token) is not None:
            progress.say(f"This model predicts no next token ({why}): cross-entropies are left out.")
            self._loss_tokens = 0

    def reports(self) -> list[dict[str, Any]]:
        """All metrics of every run as JSON values; in the first rank alone."""
        pcas, controls = self._fits()
        groups, forms = self._reconstruct(pcas, controls)
        losses = self._splice_in(groups, controls)
        reports: list[dict[str, Any]] = []
        if not self.ranks.first:
            return reports
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
            if sums is not None:
                names = [row["control"] for row in report.get("controls", ())]
                spliced = {name: of["spliced"] for name in names if (of := control_losses(sums.sums, name)) is not None}
                report["added_by_class"] = added_by_class(sums, spliced, counted=self.classes.counted, **self.draws)
            reports.append(bootstrap.plain(report))
            self.kept.append(kept_of(ordinary, sums, k=k, settings=to_json(self.config), **self.draws))
        return reports

    def _harvest(self, split: Any) -> Harvest:
        return harvest_of(self.runs, self.lm, split=split, settings=self.settings)

    def _fits(self) -> tuple[list[PCA | None], list[list[Control] | None]]:
        """Every run's PCA of training activations, and its controls; None where they are not asked for."""
        config, first = self.config, self.ranks.first
        rows = self._training_rows() if config.pca_tokens else {}
        # fits are quick beside the passes, so the first rank makes them for all
        fitted = {ends[1]: PCA.fit(some.targets.split(8192)) for ends, some in rows.items()} if first else {}
        fitted = self.ranks.share(fitted)
        pcas = [fitted.get(_ends(run)[1]) for run in self.runs]
        controls: list[list[Control] | None] = []
        dictionaries: dict[Hashable, RandomDictionary | None] = {}
        for run, pca in zip(self.runs, pcas, strict=True):
            k, dictionary = run.config.sae.k, None
            if config.controls == "all":
                # one serves all runs for which it would be the same
                like = (_ends(run), run.model.width, run.model.transcodes, k, run.config.seed)
                if like not in dictionaries:
                    self.progress.say(f"Training the encoder of a random dictionary beside {run.folder.name}.")
                    trained = None
                    if first:
                        trained = train_random_dictionary(*rows[_ends(run)], run.model, k=k, seed=run.config.seed)
                    dictionaries[like] = self.ranks.share(trained)
                dictionary = dictionaries[like]
            controls.append(controls_of(config.controls, run.model, pca, dictionary, k=k))
        return pcas, controls

    def _training_rows(self) -> dict[Ends, TrainingRows]:
        """Activations of the first training tokens, for the sites of every run; all of them in the first rank alone."""
        harvest = self._harvest("train")
        _ = harvest.norm_limits  # measured before the stream begins; raises where no token can be trained on
        kept: dict[Ends, dict[int, TrainingRows]] = {_ends(run): {} for run in self.runs}
        left = self.config.pca_tokens
        with self.progress.bar("Baseline", left, "tokens") as bar:
            for batch in shared(harvest.contexts(BEGINNING), harvest.rows, self.ranks):
                self.classes.count(_read_text(batch.unit, len(self.lm.beginning)))
                trained = batch.select(harvest.trained(batch.kind).nonzero().squeeze(1)[:left])
                if trained.rows is not None:
                    for ends, run in {_ends(run): run for run in self.runs}.items():
                        targets = run.targets_of(trained.rows).cpu()
                        inputs = targets if run.inputs == run.targets else run.inputs_of(trained.rows).cpu()
                        kept[ends][batch.number] = TrainingRows(inputs, targets)
                left -= len(trained.document)
                bar.advance(len(trained.document))
                self._check_stop(batch.number)
                if left <= 0:
                    break
        for parts in kept.values():
            self.ranks.merge(parts, parts.update)
        return {ends: _joined([parts[number] for number in sorted(parts)]) for ends, parts in kept.items() if parts}

    def _check_stop(self, number: int) -> None:
        """Stop all ranks behind the batch of that number, where a signal came to any of them."""
        if self.ranks.ends_round(number) and self.ranks.stopping(self.stop):
            self.stop.check("nothing was written")

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
        counted, total = groups[0][ORDINARY], self.config.tokens
        measuring = True  # further passes are for losses alone
        _ = self.harvest.norm_limits  # measured before the stream begins
        with self.progress.bar("Evaluating", total, "tokens") as bar:
            for batch in shared(self._units(), self._rows, self.ranks):
                before, unit = counted.tokens, batch.unit
                for kind in range(len(KINDS)) if measuring else ():
                    of_kind = (batch.kind == kind).nonzero().squeeze(1)
                    part = batch.select(of_kind[: total - before if kind == ORDINARY else None])
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
                bar.advance(counted.tokens - before)
                self._check_stop(batch.number)
                if unit.ends_batch:
                    measuring = counted.tokens < total
                if not measuring and unit.ends_losses:
                    break
        for reconstruction in [*(r for group in groups for r in group.values()), *(f for f in forms if f is not None)]:
            self.ranks.merge(reconstruction.parts(), reconstruction.merge)
        return groups, forms

    def _units(self) -> Iterator[Unit]:
        """The forward passes over the held-out documents: `LOSS_CONTEXTS` contexts each while there are losses."""
        losses_left = self._loss_tokens
        for contexts in self.harvest.contexts(BEGINNING):
            first, end = 0, len(contexts.tokens)
            while first < end and losses_left > 0:
                batch = self.downstream.batch(contexts.part(first, first + LOSS_CONTEXTS))
                self.batches.append(batch)
                losses_left -= int((batch.contexts.document >= 0).sum())
                first += LOSS_CONTEXTS
                yield Unit(batch.contexts, batch, ends_batch=first >= end, ends_losses=losses_left <= 0)
            if first < end:
                yield Unit(contexts.part(first, end), None, ends_batch=True, ends_losses=True)

    def _rows(self, unit: Unit) -> Rows:
        """One clean pass: to the end of the model where there are losses, and its states are kept."""
        if unit.batch is None:
            return self.harvest.rows(unit.contexts)
        rows = unit.batch.rows()
        self._kept += unit.batch.clean.nbytes
        if self._kept > KEPT_BYTES:
            unit.batch.forget()
        return rows

    def _splice_in(
        self, groups: list[dict[int, Reconstruction]], controls: list[list[Control] | None]
    ) -> dict[str, bootstrap.GroupSums] | None:
        """The losses of every run by its number, in the first rank; None where not asked for or not defined."""
        if not self.batches:
            return None
        splices: dict[str, Splice] = {}
        for index, run in enumerate(self.runs):
            ordinary = groups[index][ORDINARY]
            others = controls[index] or []
            of_all = (ordinary.mean, components_of(ordinary, run.config.sae.k)) if self.ranks.first else None
            mean, components = self.ranks.share(of_all)
            if controls[index] is not None and ordinary.pca is not None:
                others = [*(principal(ordinary.pca, m) for m in components), *others]
            splices[str(index)] = Splice(run.model, run.inputs, run.targets, mean.float(), others)
        with self.progress.bar("Splicing in", sum(b.contexts.tokens.numel() for b in self.batches), "tokens") as bar:
            for number, batch in enumerate(self.batches):
                if self.ranks.takes(number):
                    self.downstream.add(batch, splices)
                    batch.forget()
                else:
                    self.downstream.see(batch, splices)
                bar.advance(batch.contexts.tokens.numel())
                self._check_stop(number)
        for sums in self.downstream.sums.values():
            self.ranks.merge(sums.sums, sums.merge)
        return self.downstream.sums

    def _short(self, group: Reconstruction) -> dict[str, Any]:
        if group.tokens == 0:
            return {"tokens": 0}
        metrics = group.metrics(**self.draws)
        names = ("tokens", "fvu", "relative_error", "l0", "cosine", "reconstruction_bias")
        return {name: metrics[name] for name in names}


def _ends(run: Run) -> Ends:
    return tuple(site.name for site in run.inputs), tuple(site.name for site in run.targets)


def _read_text(contexts: Contexts, beginning: int) -> torch.Tensor:
    """Ids of a batch's tokens without padding and without those that begin a segment, int64 [n]."""
    return contexts.tokens[(contexts.document >= 0) & (contexts.position >= beginning)]


def _joined(parts: list[TrainingRows]) -> TrainingRows:
    targets = torch.cat([part.targets for part in parts])
    same = all(part.inputs is part.targets for part in parts)
    return TrainingRows(targets if same else torch.cat([part.inputs for part in parts]), targets)
