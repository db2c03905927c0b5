"""What a language model loses when reconstructions replace its activations.

Next-token cross-entropy (nats) over the tokens that follow inside their document, several times on the same contexts:
clean, with x̂ spliced in, with zero, and with the mean activation. The tokens that the autoencoder is not trained on
(BOS, special, sinks, other roles) stay as they are, except in `everywhere`.

    delta CE = CE_spliced - CE_clean        KL = mean KL(clean || spliced)
    CE recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), for zero and for mean ablation
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.ranks import ALONE, Ranks
from sae.data.packing import Contexts
from sae.evaluation.bootstrap import GroupSums, ratio
from sae.harvest.hooks import capture, splice
from sae.harvest.sites import Site
from sae.harvest.stream import ORDINARY, Harvest
from sae.models.autoencoder import Autoencoder
from sae.runs.text import joined

ROWS_AT_ONCE = 2048  # rows of logits turned into probabilities together, so that the vocabulary fits into memory


class Splice(NamedTuple):
    """An autoencoder and its sites in the language model."""

    model: Autoencoder
    inputs: list[Site]
    """Where it reads."""
    targets: list[Site]
    """Where its reconstruction replaces the activations."""
    mean: Tensor
    """Mean of the targets' activations, side by side [d_out], for mean ablation."""


@torch.no_grad()
def measure(
    harvest: Harvest,
    splices: Mapping[str, Splice],
    batches: Iterable[Contexts],
    advance: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> dict[str, GroupSums]:
    """For each autoencoder, sums a document: "count" and "clean", "spliced", "everywhere", "zero", "mean" losses, "kl".

    Every autoencoder reads the activations of the clean pass, so a transcoder or a crosscoder gets what it was trained
    on; the clean pass and the ablations of a site are run once for all autoencoders.

    Args:
        harvest: the model, all sites of the autoencoders, and which tokens are ordinary.
        splices: autoencoders by name.
        batches: contexts, whose documents are all evaluated.
        advance: called with the tokens of each batch.
        ranks: processes that share out the batches; the first one returns the sums of all.
    """
    sums = {name: GroupSums() for name in splices}
    for number, contexts in enumerate(batches):
        if not ranks.takes(number):
            for of_one in sums.values():
                of_one.see(_predictions(contexts)[2])
            advance(contexts.tokens.numel())
            continue
        one = _Batch(harvest, contexts)
        ablated: dict[tuple[Site, ...], dict[str, Tensor]] = {}
        for name, (model, inputs, targets, mean) in splices.items():
            places = tuple(targets)
            if places not in ablated:
                ablated[places] = {
                    "zero": one.losses(places, torch.zeros_like(one.target(places))),
                    "mean": one.losses(places, mean.to(one.device).expand_as(one.target(places))),
                }
            reconstruction = torch.cat([model(rows)[1] for rows in one.target(inputs).split(ROWS_AT_ONCE)])
            spliced = one.log_probabilities(places, reconstruction)
            values = {
                "count": torch.ones(len(one.following)),
                "clean": one.cross_entropy(one.clean),
                "spliced": one.cross_entropy(spliced),
                "kl": _kl(one.clean, spliced),
                **ablated[places],
            }
            del spliced
            values["everywhere"] = one.losses(places, reconstruction, everywhere=True)
            sums[name].add(one.document, {key: value.cpu() for key, value in values.items()})
        advance(contexts.tokens.numel())
    for of_one in sums.values():
        ranks.merge(of_one.sums, of_one.merge)
    return sums


class _Batch:
    """One batch of contexts: its clean pass, and passes with other activations at some sites."""

    def __init__(self, harvest: Harvest, contexts: Contexts) -> None:
        self.harvest, self.device = harvest, harvest.lm.device
        self.inputs = harvest.inputs(contexts)
        predicting, following, self.document = _predictions(contexts)
        self.predicting, self.following = predicting.to(self.device), following.to(self.device)
        with capture(harvest.lm.model, harvest.sites, stop=False) as captured:
            self.clean = self._run()
        self.activations = captured.activations
        flat = {name: a.flatten(0, 1).float() for name, a in self.activations.items()}
        real = (contexts.document >= 0).flatten().nonzero().squeeze(1)
        harvest.check_finite(contexts, real, {name: a[real.to(a.device)] for name, a in flat.items()})
        kind = harvest.token_kinds(contexts.tokens.flatten(), flat, harvest.wanted(contexts))
        ordinary = (kind == ORDINARY) & (contexts.document.flatten() >= 0)
        self.ordinary = ordinary.to(self.device).unsqueeze(1)

    def target(self, sites: Sequence[Site]) -> Tensor:
        """The clean activations of all tokens at some sites, side by side [T, d], float32."""
        return joined({name: a.flatten(0, 1) for name, a in self.activations.items()}, sites)

    def log_probabilities(self, sites: Sequence[Site], rows: Tensor, *, everywhere: bool = False) -> Tensor:
        """log p [n, vocabulary] with `rows` [T, d] at the ordinary tokens (or all) of `sites`."""
        replaced = rows if everywhere else torch.where(self.ordinary, rows, self.target(sites))
        parts = replaced.split([site.width or 0 for site in sites], dim=1)
        fixed = {site: _constant(part) for site, part in zip(sites, parts, strict=True)}
        with splice(self.harvest.lm.model, fixed):
            return self._run()

    def losses(self, sites: Sequence[Site], rows: Tensor, *, everywhere: bool = False) -> Tensor:
        """Cross-entropies [n] with `rows` at the sites, as in `log_probabilities`."""
        return self.cross_entropy(self.log_probabilities(sites, rows, everywhere=everywhere))

    def cross_entropy(self, log_p: Tensor) -> Tensor:
        """Cross-entropies of the next tokens [n]."""
        return -log_p.gather(1, self.following.unsqueeze(1)).squeeze(1)

    def _run(self) -> Tensor:
        """log p [n, vocabulary], float32, at the tokens whose next token is known."""
        rows = self.harvest.lm.model(**self.inputs).logits.flatten(0, 1)[self.predicting].float()
        for part in rows.split(ROWS_AT_ONCE):
            part.copy_(part.log_softmax(-1))
        return rows


def _constant(rows: Tensor) -> Callable[[Tensor], Tensor]:
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


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row [n]."""
    parts = zip(log_p.split(ROWS_AT_ONCE), log_q.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in parts])


def enough(batches: Iterable[Contexts], tokens: int) -> Sequence[Contexts]:
    """The first batches with `tokens` tokens (padding not counted), or all."""
    taken: list[Contexts] = []
    for contexts in batches:
        taken.append(contexts)
        tokens -= int((contexts.document >= 0).sum())
        if tokens <= 0:
            break
    return taken
