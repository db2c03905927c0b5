"""What the answers of a scorer are worth: separation of right from wrong texts, correlation, and agreement of scorers.

    separation(answers, positive, documents).value     # AUROC; .accuracy at a threshold; 95% interval over documents
    correlation(true, predicted, documents).value      # simulation

Detection and fuzzing are from Paulo et al. 2024 (arXiv:2410.13928), simulation from Bills et al. 2023: predicted
against true activations of all texts together. Chance is 0.5 for a separation and 0 for a correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.features.explain.scoring import judge

RESAMPLES = 1000
LEAST = 3
"""Texts of each side below which nothing is measured, and latents below which no agreement is."""


class Separation(NamedTuple):
    """How well answers tell positive texts from negative ones."""

    value: float
    """AUROC."""
    low: float
    high: float
    accuracy: float
    """Balanced accuracy: mean of the shares of positive and of negative texts that are told right."""

    def to_json(self) -> dict[str, float]:
        return self._asdict()


class Correlation(NamedTuple):
    """Pearson correlation of predicted and true activations."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return self._asdict()


def separation(
    answers: np.ndarray, positive: np.ndarray, documents: np.ndarray, *, threshold: float = 0.5, seed: int = 0
) -> Separation | None:
    """AUROC with a bootstrap interval over documents, and balanced accuracy; None with too few texts of a side.

    Args:
        answers: float [n], larger where the scorer says yes.
        positive: bool [n], whether yes is right.
        documents: int64 [n], the document of each text.
        threshold: answers above it count as yes, answers equal to it as half a yes.
        seed: of the bootstrap.
    """
    if min(positive.sum(), (~positive).sum()) < LEAST:
        return None
    verdict = judge(answers, positive, documents, threshold, seed=seed)
    said = (np.sign(answers - threshold) + 1) / 2
    accuracy = (float(said[positive].mean()) + 1 - float(said[~positive].mean())) / 2
    return Separation(verdict.auroc, verdict.low, verdict.high, accuracy)


def correlation(
    true: Sequence[np.ndarray], predicted: Sequence[np.ndarray], documents: np.ndarray, *, seed: int = 0
) -> Correlation | None:
    """Correlation over all tokens of all texts with a bootstrap interval over documents; None with too few texts.

    A prediction that is the same for every token predicts nothing, and its correlation counts as 0.

    Args:
        true: activations of each text's tokens, float [tokens].
        predicted: what the scorer predicts for them.
        documents: int64 [texts].
        seed: of the bootstrap.
    """
    if len(true) < LEAST:
        return None
    sums = np.stack([_moments(t.astype(np.float64), p) for t, p in zip(true, predicted, strict=True)])
    _, group = np.unique(documents, return_inverse=True)
    count = int(group.max()) + 1
    by_document = np.zeros((count, sums.shape[1]))
    np.add.at(by_document, group, sums)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile(_pearson(weights @ by_document), [0.025, 0.975])
    return Correlation(float(_pearson(sums.sum(0)[None])[0]), float(low), float(high))


def agreement(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> dict[str, Any] | None:
    """Spearman rank correlation of two scorers over the latents that both scored; interval from a bootstrap over them.

    Args:
        first: scores by one, float [n].
        second: scores of the same latents by the other.
        seed: of the bootstrap.

    Returns:
        {"value", "low", "high", "n"}; None for fewer than 3 latents, or where one gave all the same score.
    """
    if len(first) < LEAST or first.std() == 0 or second.std() == 0:
        return None
    draws = np.random.default_rng(seed).integers(len(first), size=(RESAMPLES, len(first)))
    resampled = np.array([_spearman(first[draw], second[draw]) for draw in draws])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": _spearman(first, second), "low": float(low), "high": float(high), "n": len(first)}


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of the ranks, ties sharing their mean rank; 0 where one side has one rank alone."""
    from scipy.stats import rankdata

    pairs = _moments(rankdata(first), rankdata(second))
    return float(_pearson(pairs[None])[0])


def _moments(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """n, Σt, Σp, Σt², Σp², Σtp."""
    return np.array(
        [len(true), true.sum(), predicted.sum(), (true**2).sum(), (predicted**2).sum(), (true * predicted).sum()]
    )


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Correlations [r] from rows of `_moments` [r, 6]; 0 where one side does not vary."""
    n, t, p, tt, pp, tp = sums.T
    spread_t, spread_p = np.maximum(n * tt - t * t, 0), np.maximum(n * pp - p * p, 0)
    # a constant leaves rounding errors alone
    flat = (spread_t <= 1e-12 * n * tt) | (spread_p <= 1e-12 * n * pp)
    scale = np.sqrt(np.where(flat, 1.0, spread_t * spread_p))
    return np.where(flat, 0.0, np.clip((n * tp - t * p) / scale, -1, 1))
