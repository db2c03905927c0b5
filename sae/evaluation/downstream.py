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

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.data.packing import Contexts
from sae.evaluation.bootstrap import GroupSums, ratio
from sae.evaluation.losses import losses
from sae.harvest.hooks import Replacement
from sae.harvest.replay import Clean, Passes
from sae.harvest.sites import Site
from sae.harvest.stream import ORDINARY, Harvest
from sae.models.autoencoder import Autoencoder
from sae.runs.text import joined

ROWS_AT_ONCE = 2048  # rows encoded together


class Splice(NamedTuple):
    """An autoencoder and its sites in the language model."""

    model: Autoencoder
    inputs: list[Site]
    """Where it reads."""
    targets: list[Site]
    """Where its reconstruction replaces the activations."""
    mean: Tensor
    """Mean of the targets' activations, side by side [d_out], for mean ablation."""

    @property
    def places(self) -> tuple[Site, ...]:
        """The sites that it replaces."""
        return tuple(self.targets)


def measure(
    harvest: Harvest, splices: Mapping[str, Splice], batches: Iterable[Contexts], advance: Callable[[int], None]
) -> dict[str, GroupSums]:
    """For each autoencoder, sums a document: "count" and "clean", "spliced", "everywhere", "zero", "mean" losses, "kl".

    Args:
        harvest: the model, all sites of the autoencoders, and which tokens are ordinary.
        splices: autoencoders by name.
        batches: contexts, whose documents are all evaluated.
        advance: called with the tokens of each batch.
    """
    downstream = Downstream(harvest, splices)
    for contexts in batches:
        downstream.add(downstream.batch(contexts))
        advance(contexts.tokens.numel())
    return downstream.sums


class Downstream:
    """Losses of several autoencoders over the same contexts.

    Every autoencoder reads the activations of the clean pass, so a transcoder or a crosscoder gets what it was trained
    on; the clean pass and the ablations of a site are run once for all autoencoders.

    Args:
        harvest: the model, all sites of the autoencoders, and which tokens are ordinary.
        splices: autoencoders by name.
    """

    def __init__(self, harvest: Harvest, splices: Mapping[str, Splice]) -> None:
        self.harvest, self.splices = harvest, splices
        self.sums = {name: GroupSums() for name in splices}
        """Name of an autoencoder -> sums a document, see `measure`."""
        self.passes = Passes(harvest.lm.model)
        self._verified = False

    def batch(self, contexts: Contexts) -> Batch:
        """A batch, whose clean pass runs when it is first asked for; the first one also verifies the passes."""
        places = list(dict.fromkeys(splice.places for splice in self.splices.values()))
        if not self._verified:
            self.passes.verify(self.harvest.inputs(contexts.part(0, 1)), places)
            self._verified = True
        return Batch(self.harvest, self.passes, contexts, places)

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Splice everything into one batch and add its losses."""
        ablated: dict[tuple[Site, ...], dict[str, Tensor]] = {}
        for name, (model, inputs, targets, mean) in self.splices.items():
            places = tuple(targets)
            target = batch.activations(targets)
            reconstruction = torch.cat([model(rows)[1] for rows in batch.activations(inputs).split(ROWS_AT_ONCE)])
            spliced = {
                "spliced": batch.spliced(places, reconstruction),
                "everywhere": batch.spliced(places, reconstruction, everywhere=True),
            }
            if places not in ablated:
                spliced["zero"] = batch.spliced(places, torch.zeros_like(target))
                spliced["mean"] = batch.spliced(places, mean.to(target.device).expand_as(target))
            values = losses(self.passes.logits, batch.last, spliced, batch.following, divergences=["spliced"])
            ablated.setdefault(places, {key: values[key] for key in ("zero", "mean") if key in values})
            values = {key: values[key] for key in ("clean", "spliced", "everywhere")} | {
                "count": torch.ones(len(batch.following)),
                "kl": values["kl.spliced"],
                **ablated[places],
            }
            self.sums[name].add(batch.document, {key: value.cpu() for key, value in values.items()})

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

    @cached_property
    def clean(self) -> Clean:
        """The clean pass; `hidden` holds the n tokens that predict alone, [n, d]."""
        clean = self.passes.clean(self.harvest.inputs(self.contexts), self.harvest.sites, self.places)
        return clean._replace(hidden=self._predicting(clean.hidden))

    @cached_property
    def ordinary(self) -> Tensor:
        """Which tokens are replaced, bool [T, 1]."""
        flat = {name: a.flatten(0, 1).float() for name, a in self.clean.activations.items()}
        real = (self.contexts.document >= 0).flatten().nonzero().squeeze(1)
        self.harvest.check_finite(self.contexts, real, {name: a[real.to(a.device)] for name, a in flat.items()})
        kind = self.harvest.token_kinds(self.contexts.tokens.flatten(), flat, self.harvest.wanted(self.contexts))
        ordinary = (kind == ORDINARY) & (self.contexts.document.flatten() >= 0)
        return ordinary.to(self.predicting.device).unsqueeze(1)

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


def _constant(rows: Tensor) -> Replacement:
    return lambda activation: rows.to(activation.dtype).view_as(activation)


def metrics(sums: GroupSums, *, resamples: int, seed: int) -> dict[str, Any]:
    """The metrics at the top of this file from `measure`'s sums, as intervals."""

    def interval(metric: Callable[[dict[str, Tensor]], Tensor]) -> Any:
        return sums.interval(metric, resamples=resamples, seed=seed)

    def recovered(ablated: str) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda s: (s[ablated] - s["spliced"]) / (s[ablated] - s["clean"])

    return {
        "tokens": int(sums.sums["count"].sum()),
        "documents": sums.documents,
        "ce_clean": interval(ratio("clean", "count")),
        "ce_spliced": interval(ratio("spliced", "count")),
        "delta_ce": interval(lambda s: (s["spliced"] - s["clean"]) / s["count"]),
        "delta_ce_everywhere": interval(lambda s: (s["everywhere"] - s["clean"]) / s["count"]),
        "kl": interval(ratio("kl", "count")),
        "ce_zero_ablation": interval(ratio("zero", "count")),
        "ce_mean_ablation": interval(ratio("mean", "count")),
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
