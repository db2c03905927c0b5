"""What the language model loses when the reconstruction takes the activation's place.

Next-token cross-entropy (nats) over the tokens that follow inside their document, four times on the same contexts:
clean, with x̂ spliced in, with zero, and with the mean activation. The tokens that the autoencoder is not trained on
(BOS, special, sinks) stay as they are; `everywhere` replaces them as well.

    delta CE = CE_spliced - CE_clean        KL = mean KL(clean || spliced)
    CE recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), for zero and for mean ablation
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.data.packing import Contexts
from sae.evaluation.bootstrap import GroupSums, ratio
from sae.harvest.hooks import splice
from sae.harvest.stream import ORDINARY, Harvest
from sae.models.autoencoder import Autoencoder

ROWS_AT_ONCE = 2048  # of logits turned into probabilities together, so that the vocabulary does not fill the memory


def can_predict(harvest: Harvest) -> bool:
    """Whether the model has a next-token head (an encoder has none, so none of this is defined for it)."""
    from transformers import AutoModelForCausalLM

    return type(harvest.lm.model.config) in AutoModelForCausalLM._model_mapping


@torch.no_grad()
def measure(
    harvest: Harvest, model: Autoencoder, mean: Tensor, batches: Iterable[Contexts], advance: Callable[[int], None]
) -> GroupSums:
    """Sums a document: "count" and "clean", "spliced", "everywhere", "zero", "mean" cross-entropies, "kl".

    Args:
        harvest: the model, its one site, and which tokens are ordinary.
        model: the autoencoder of that site.
        mean: mean activation [d], for mean ablation.
        batches: contexts, all documents of which are evaluated.
        advance: called with the tokens of each batch.
    """
    sums = GroupSums()
    (site,) = harvest.sites
    mean = mean.float().to(harvest.lm.device)
    replacements: dict[str, Callable[[Tensor], Tensor]] = {
        "spliced": lambda x: model(x)[1],
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
    }
    for contexts in batches:
        inputs = harvest.inputs(contexts)
        predicting, following, document = _predictions(contexts)
        clean = _log_probabilities(harvest, inputs, predicting)
        chosen = following.to(harvest.lm.device)
        values = {"count": torch.ones(len(following)), "clean": _cross_entropy(clean, chosen)}
        for name, replace in replacements.items():
            with splice(harvest.lm.model, {site: _on_ordinary(harvest, contexts, replace)}):
                changed = _log_probabilities(harvest, inputs, predicting)
            values[name] = _cross_entropy(changed, chosen)
            if name == "spliced":
                values["kl"] = _kl(clean, changed)
        with splice(harvest.lm.model, {site: _everywhere(replacements["spliced"])}):
            values["everywhere"] = _cross_entropy(_log_probabilities(harvest, inputs, predicting), chosen)
        sums.add(document, {name: v.cpu() for name, v in values.items()})
        advance(contexts.tokens.numel())
    return sums


def metrics(sums: GroupSums, *, resamples: int, seed: int) -> dict[str, Any]:
    """The metrics of the module docstring from `measure`'s sums, as intervals."""

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
    """Flat indices of the tokens whose follower is in the same segment, the followers' ids, their documents."""
    inside = (contexts.document >= 0)[:, 1:] & (contexts.position[:, 1:] == contexts.position[:, :-1] + 1)
    row, column = inside.nonzero(as_tuple=True)
    width = contexts.tokens.shape[1]
    return row * width + column, contexts.tokens[row, column + 1], contexts.document[row, column]


def _log_probabilities(harvest: Harvest, inputs: dict[str, Any], predicting: Tensor) -> Tensor:
    """log p [n, vocabulary] in float32 at the flat positions `predicting`."""
    logits = harvest.lm.model(**inputs).logits
    rows = logits.flatten(0, 1)[predicting.to(logits.device)].float()
    for part in rows.split(ROWS_AT_ONCE):
        part.copy_(part.log_softmax(-1))
    return rows


def _cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    return -log_p.gather(1, target.unsqueeze(1)).squeeze(1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row [n]."""
    parts = zip(log_p.split(ROWS_AT_ONCE), log_q.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in parts])


def _everywhere(replace: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: replace(x.flatten(0, -2).float()).to(x.dtype).view_as(x)


def _on_ordinary(
    harvest: Harvest, contexts: Contexts, replace: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def change(activation: Tensor) -> Tensor:
        flat = activation.flatten(0, -2).float()
        kind = harvest.token_kinds(contexts.tokens.flatten(), {harvest.sites[0].name: flat})
        ordinary = (kind == ORDINARY) & (contexts.document.flatten() >= 0)
        chosen = ordinary.nonzero().squeeze(1).to(flat.device)
        return flat.index_copy(0, chosen, replace(flat[chosen])).to(activation.dtype).view_as(activation)

    return change


def enough(batches: Iterable[Contexts], tokens: int) -> Sequence[Contexts]:
    """The first batches that hold `tokens` tokens (padding not counted), or all."""
    taken: list[Contexts] = []
    for contexts in batches:
        taken.append(contexts)
        tokens -= int((contexts.document >= 0).sum())
        if tokens <= 0:
            break
    return taken
