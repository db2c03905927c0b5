"""How well a name predicts where its latent fires, on examples that it was not made from.

auroc(score, positive)                       # chance that a firing token scores higher than a silent one
judge(score, positive, document, threshold)  # with a bootstrap interval over documents, precision and recall
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 200


class Verdict(NamedTuple):
    """A rule's scores on held-out examples."""

    auroc: float
    low: float
    """Lower end of the 95% interval (percentile bootstrap over documents)."""
    high: float
    precision: float | None
    """Share of the tokens the rule picks at which the latent fires; None where it picks none."""
    recall: float
    """Share of the firing tokens that the rule picks."""


def auroc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve: P(score⁺ > score⁻) + P(score⁺ = score⁻)/2 (Mann and Whitney 1947).

    Args:
        score: float [n].
        positive: bool [n], with at least one True and one False.
        weight: float [n], how much each counts; 1 by default.
    """
    weight = np.ones(len(score)) if weight is None else weight
    values, inverse = np.unique(score, return_inverse=True)
    hits = np.bincount(inverse, weights=positive * weight, minlength=len(values))
    misses = np.bincount(inverse, weights=~positive * weight, minlength=len(values))
    below = np.cumsum(misses) - misses
    return float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))


def judge(score: np.ndarray, positive: np.ndarray, document: np.ndarray, threshold: float, *, seed: int = 0) -> Verdict:
    """AUROC with its interval, precision and recall at `threshold`.

    Documents are resampled, not tokens, because tokens of one document are alike; firing and silent examples apart.

    Args:
        score: float [n].
        positive: bool [n], with at least one True and one False.
        document: int64 [n].
        threshold: the lowest score at which the rule predicts a firing.
        seed: of the bootstrap.
    """
    above = np.sign(score[positive][:, None] - score[~positive][None]) / 2 + 0.5
    draw = np.random.default_rng(seed)
    fires = _document_weights(document[positive], draw)
    silent = _document_weights(document[~positive], draw)
    resampled = np.einsum("rp,pn,rn->r", fires, above, silent, optimize=True) / (fires.sum(1) * silent.sum(1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    said = score >= threshold
    precision = float(positive[said].mean()) if said.any() else None
    return Verdict(float(above.mean()), float(low), float(high), precision, float(said[positive].mean()))


def mean_interval(values: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Mean over latents with its 95% interval, latents resampled (Efron and Tibshirani 1993, ch. 6)."""
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(values), np.full(len(values), 1 / len(values)), size=1000)
    low, high = np.quantile(counts @ values / len(values), [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _document_weights(document: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """How often each example is drawn in each resample of the documents, [RESAMPLES, n]."""
    documents, inverse = np.unique(document, return_inverse=True)
    share = np.full(len(documents), 1 / len(documents))
    return draw.multinomial(len(documents), share, size=RESAMPLES)[:, inverse].astype(np.float64)
