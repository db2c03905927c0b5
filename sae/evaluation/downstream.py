"""What a language model loses when reconstructions replace its activations.

Next-token cross-entropy (nats) over the tokens that follow inside their document, several times on the same contexts:
clean, with x̂ spliced in, with zero, and with the mean activation. The tokens that the autoencoder is not trained on
(BOS, special, sinks, other roles) stay as they are, except in `everywhere`.

    delta CE = CE_spliced - CE_clean        KL = mean KL(clean || spliced)
    CE recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), for zero and for mean ablation

Every pass but the clean one begins at the site (`sae.harvest.replay`), and no array of tokens by vocabulary is made
(`sae.evaluation.losses`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.data.packing import Contexts
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.controls import Control, Encoded
from sae.evaluation.losses import losses
from sae.evaluation.token_classes import TokenClasses
from sae.harvest.hooks import Replacement
from sae.harvest.replay import Clean, Passes
from sae.harvest.rows import Rows
from sae.harvest.sites import Site
from sae.harvest.stream import ORDINARY, Harvest
from sae.models.autoencoder import Autoencoder
from sae.runs.text import joined

ROWS_AT_ONCE = 2048  # rows encoded together
PADDING = -1
"""Kind of padding."""


class Splice(NamedTuple):
    """An autoencoder and its sites in the language model."""

    model: Autoencoder
    inputs: list[Site]
    """Where it reads."""
    targets: list[Site]
    """Where its reconstruction replaces the activations."""
    mean: Tensor
    """Mean of the targets' activations, side by side [d_out], for mean ablation."""
    controls: Sequence[Control] = ()
    """Other reconstructions of the targets, spliced in like the autoencoder's."""

    @property
    def places(self) -> tuple[Site, ...]:
        """The sites that it replaces."""
        return tuple(self.targets)


def measure(
    harvest: Harvest,
    splices: Mapping[str, Splice],
    batches: Iterable[Contexts],
    advance: Callable[[int], None],
) -> dict[str, GroupSums]:
    """For each autoencoder, sums a document: "count" and "clean", "spliced", "everywhere", "zero", "mean" losses, "kl".

    Args:
        harvest: the model, all sites of the autoencoders, and which tokens are ordinary.
        splices: autoencoders by name.
        batches: contexts, whose documents are all evaluated.
        advance: called with the tokens of each batch.
    """
    downstream = Downstream(harvest, [splice.places for splice in splices.values()])
    for contexts in batches:
        downstream.add(downstream.batch(contexts), splices)
        advance(contexts.tokens.numel())
    return downstream.sums


class Downstream:
    """Losses of several autoencoders over the same contexts.

    Every autoencoder reads the activations of the clean pass, so a transcoder or a crosscoder gets what it was trained
    on; the clean pass, the ablations of a site and the controls that autoencoders share are run once for all of them.

    Args:
        harvest: the model, all sites of the autoencoders, and which tokens are ordinary.
        places: the sites that are replaced together.
        classes: sorts the tokens whose losses are also summed by class; None for none.
    """

    def __init__(
        self, harvest: Harvest, places: Sequence[tuple[Site, ...]], classes: TokenClasses | None = None
    ) -> None:
        self.harvest, self.places, self.classes = harvest, list(dict.fromkeys(places)), classes
        self.sums: dict[str, GroupSums] = {}
        """Name of an autoencoder -> sums a document, see `add`."""
        self.passes = Passes(harvest.lm.model)
        self._verified = False

    def batch(self, contexts: Contexts) -> Batch:
        """A batch, whose clean pass runs when it is first asked for; the first one also verifies the passes."""
        if not self._verified:
            self.passes.verify(self.harvest.inputs(contexts.part(0, 1)), self.places)
            self._verified = True
        return Batch(self.harvest, self.passes, contexts, self.places)

    def add(self, batch: Batch, splices: Mapping[str, Splice]) -> None:
        """Splice everything into one batch and add its losses.

        An autoencoder's sums are those of `measure` and, for each of its controls, "NAME" and "kl.NAME", with "kl.mean"
        for the mean. With `classes`, the cross-entropies are also summed a class, as "class.NAME" and "class.count".
        """
        membership = None if self.classes is None else batch.classes(self.classes)
        shared: dict[tuple[tuple[Site, ...], str, Hashable], Tensor] = {}
        for name, splice in splices.items():
            of = _shareable(splice)
            known = {loss: shared[key] for loss in of if (key := (splice.places, loss, of[loss])) in shared}
            values = known | self._losses(batch, splice, known)
            shared |= {(splice.places, loss, of[loss]): values[loss] for loss in of if loss in values}
            count = torch.ones(len(batch.following))
            values = {"count": count} | values
            if membership is not None:
                entropies = {loss: rows for loss, rows in values.items() if not loss.startswith("kl")}
                values |= {f"class.{loss}": membership * rows.unsqueeze(1) for loss, rows in entropies.items()}
            self.sums.setdefault(name, GroupSums()).add(batch.document, values)

    def see(self, batch: Batch, names: Iterable[str]) -> None:
        """Count the documents of a batch that another process adds for these autoencoders."""
        for name in names:
            self.sums.setdefault(name, GroupSums()).see(batch.document)

    @torch.no_grad()
    def _losses(self, batch: Batch, splice: Splice, known: Collection[str]) -> dict[str, Tensor]:
        """The losses [n] of one autoencoder that are not known yet, on the CPU."""
        target, places = batch.activations(splice.targets), splice.places
        controls = [control for control in splice.controls if control.name not in known]
        reconstruction, others = _reconstructed(splice, batch.activations(splice.inputs), target, controls)
        hidden = {
            "spliced": batch.spliced(places, reconstruction),
            "everywhere": batch.spliced(places, reconstruction, everywhere=True),
            **{name: batch.spliced(places, rows) for name, rows in others.items()},
        }
        if "zero" not in known:
            hidden["zero"] = batch.spliced(places, torch.zeros_like(target))
            hidden["mean"] = batch.spliced(places, splice.mean.to(target).expand_as(target))
        divergences = ["spliced", *others, *(["mean"] if splice.controls and "mean" in hidden else [])]
        values = losses(self.passes.logits, batch.last, hidden, batch.following, divergences=divergences)
        values["kl"] = values.pop("kl.spliced")
        return {name: rows.cpu() for name, rows in values.items()}

    @property
    def record(self) -> str:
        """What each spliced pass computed, for the report."""
        return "behind the site" if self.passes.whole is None else f"whole: {self.passes.whole}"


class Batch:
    """One batch of contexts: its clean pass, and passes with other activations at some sites.

    T is the number of its tokens, padding included; n of them are followed by a token of their segment.
    """

    def __init__(self, harvest: Harvest, passes: Passes, contexts: Contexts, places: Sequence[Sequence[Site]]) -> None:
        self.harvest, self.passes, self.contexts, self.places = harvest, passes, contexts, places
        device = harvest.lm.device
        predicting, following, self.document = _predictions(contexts)
        self.predicting, self.following = predicting.to(device), following.to(device)
        self._kind: Tensor | None = None  # once the tokens were sorted into kinds

    @cached_property
    def clean(self) -> Clean:
        """The clean pass, kept until `forget`; `hidden` holds the n tokens that predict alone, [n, d]."""
        clean = self.passes.clean(self.harvest.inputs(self.contexts), self.harvest.sites, self.places)
        return clean._replace(hidden=self._predicting(clean.hidden))

    def rows(self) -> Rows:
        """The rows of all tokens that are not padding, as of a harvest.

        Raises:
            ActivationError: activations are not finite.
        """
        rows = self.harvest.rows(self.contexts, self.clean.activations)
        self._kind = torch.full((self.contexts.document.numel(),), PADDING, dtype=torch.int8)
        self._kind[(self.contexts.document >= 0).flatten()] = rows.kind
        return rows

    @property
    def kind(self) -> Tensor:
        """The kind of each token, int8 [T] on the CPU; `PADDING` for padding."""
        if self._kind is None:
            self.rows()
        assert self._kind is not None  # `rows` sets it
        return self._kind

    @cached_property
    def ordinary(self) -> Tensor:
        """Which tokens are replaced, bool [T, 1]."""
        return (self.kind == ORDINARY).to(self.predicting.device).unsqueeze(1)

    def classes(self, sort: TokenClasses) -> Tensor:
        """The classes of the n tokens that predict, see `TokenClasses`."""
        at = self.predicting.cpu()
        tokens, position = self.contexts.tokens.flatten(), self.contexts.position.flatten()
        return sort(tokens[at], self.kind[at], position[at], self.following)

    def forget(self) -> None:
        """Free the clean pass, which runs again when it is asked for."""
        self.__dict__.pop("clean", None)

    @property
    def last(self) -> Tensor:
        """What the head reads in the clean pass, of the tokens that predict, [n, d]."""
        return self.clean.hidden

    def activations(self, sites: Sequence[Site]) -> Tensor:
        """The clean activations of all tokens at some sites, side by side [T, d], float32."""
        return joined({name: a.flatten(0, 1) for name, a in self.clean.activations.items()}, sites)

    def spliced(self, sites: Sequence[Site], rows: Tensor, *, everywhere: bool = False) -> Tensor:
        """What the head reads [n, d] with `rows` [T, d] at the ordinary tokens (or all) of `sites`."""
        replaced = rows if everywhere else torch.where(self.ordinary, rows, self.activations(sites))
        parts = replaced.split([site.width or 0 for site in sites], dim=1)
        fixed = {site: _constant(part) for site, part in zip(sites, parts, strict=True)}
        return self._predicting(self.passes.spliced(self.clean, fixed))

    def _predicting(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1)[self.predicting]


def _shareable(splice: Splice) -> dict[str, Hashable]:
    """Losses that other autoencoders with the same places may share, each with what else it depends on."""
    losses: dict[str, Hashable] = {"clean": None, "zero": None, "mean": None, "kl.mean": None}
    for control in splice.controls:
        losses |= {control.name: control.of, f"kl.{control.name}": control.of}
    return losses


def _reconstructed(
    splice: Splice, x: Tensor, target: Tensor, controls: Sequence[Control]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the autoencoder and each of the controls make of rows, [T, d_out]."""
    parts: list[Tensor] = []
    others: dict[str, list[Tensor]] = {control.name: [] for control in controls}
    for rows, expected in zip(x.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True):
        codes, reconstruction = splice.model(rows)
        parts.append(reconstruction)
        for control in controls:
            others[control.name].append(control.attempt(Encoded(rows, expected, codes)).reconstruction)
    return torch.cat(parts), {name: torch.cat(some) for name, some in others.items()}


def _constant(rows: Tensor) -> Replacement:
    return lambda activation: rows.to(activation.dtype).view_as(activation)


def metrics(sums: GroupSums, *, resamples: int, seed: int) -> dict[str, Any]:
    """The metrics at the top of this file from `measure`'s sums, as intervals."""

    def interval(metric: Callable[[Mapping[str, Tensor]], Tensor]) -> Interval | None:
        return sums.interval(metric, resamples=resamples, seed=seed)

    recovered = recovery(sums, "spliced", "kl", resamples=resamples, seed=seed)
    return {
        "tokens": int(sums.sums["count"].sum()),
        "documents": sums.documents,
        "ce_clean": interval(ratio("clean", "count")),
        "ce_spliced": interval(ratio("spliced", "count")),
        "delta_ce": recovered.pop("delta_ce"),
        "delta_ce_everywhere": interval(lambda s: (s["everywhere"] - s["clean"]) / s["count"]),
        "kl": recovered.pop("kl"),
        "ce_zero_ablation": interval(ratio("zero", "count")),
        "ce_mean_ablation": interval(ratio("mean", "count")),
        **recovered,
    }


def recovery(sums: GroupSums, spliced: str, kl: str, *, resamples: int, seed: int) -> dict[str, Interval | None]:
    """Delta CE, KL and CE recovered of what was spliced in, from its sums `spliced` and `kl`."""

    def interval(metric: Callable[[Mapping[str, Tensor]], Tensor]) -> Interval | None:
        return sums.interval(metric, resamples=resamples, seed=seed)

    def recovered(ablated: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda s: (s[ablated] - s[spliced]) / (s[ablated] - s["clean"])

    return {
        "delta_ce": interval(lambda s: (s[spliced] - s["clean"]) / s["count"]),
        "kl": interval(ratio(kl, "count")),
        "ce_recovered_zero": interval(recovered("zero")),
        "ce_recovered_mean": interval(recovered("mean")),
    }


def _predictions(contexts: Contexts) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices of tokens whose next token is in the same segment, ids of the next tokens, their documents."""
    inside = (contexts.document >= 0)[:, 1:] & (contexts.position[:, 1:] == contexts.position[:, :-1] + 1)
    row, column = inside.nonzero(as_tuple=True)
    width = contexts.tokens.shape[1]
    return row * width + column, contexts.tokens[row, column + 1], contexts.document[row, column]


def enough(batches: Iterable[Contexts], tokens: int) -> Sequence[Contexts]:
    """The first batches with `tokens` tokens (padding not counted), or all."""
    taken: list[Contexts] = []
    for contexts in batches:
        taken.append(contexts)
        tokens -= int((contexts.document >= 0).sum())
        if tokens <= 0:
            break
    return taken
