"""Rows with intervals: a metric is a function of weights on held-out units, and resamples are a matrix of weights.

    resamples = Resamples.of(len(truth), count=1000, seed=0)
    compared("probing.auroc", "language", 5, {SAE: lambda w: auroc(scores, truth, w), ...}, resamples)

Probes and choices of latents are made once, on training texts; the intervals tell how much the held-out texts vary, not
what another training set would give. Letters: R resamples, n held-out units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sae.evaluation.bootstrap import MOST_UNDEFINED, resample_weights
from sae.evaluation.semantic.results import CAVEATS, SAE, Row

Metric = Callable[[np.ndarray], np.ndarray]
"""Weights [1 + R, n] -> values [1 + R]; NaN where it is not defined."""


class Resamples(NamedTuple):
    """How often each unit is drawn."""

    weights: np.ndarray
    """float64 [1 + R, n]; the first row is 1 for all: the sample itself."""

    @classmethod
    def of(cls, units: int, *, count: int, seed: int) -> Resamples:
        """R = `count` draws of units with replacement (Efron & Tibshirani 1993, ch. 6)."""
        return cls(np.vstack([np.ones((1, units)), resample_weights(units, count, seed).numpy()]))


def compared(
    measure: str, task: str, k: int | None, metrics: Mapping[str, Metric], resamples: Resamples, n: int | None = None
) -> list[Row]:
    """A row for every subject whose value is defined; differences are paired, on the same resamples.

    Args:
        metrics: subject -> metric; `SAE` is among them.
        n: units behind the numbers, where they are not those of the resamples.
    """
    values = {subject: np.asarray(metric(resamples.weights)) for subject, metric in metrics.items()}
    reference = values[SAE]
    rows = []
    for subject, drawn in values.items():
        if not np.isfinite(drawn[0]):
            continue
        paired = (None, None, None)
        if subject != SAE and np.isfinite(reference[0]):
            paired = (float(drawn[0] - reference[0]), *bounds(drawn[1:] - reference[1:]))
        units = resamples.weights.shape[1] if n is None else n
        caveat = CAVEATS[measure.partition(".")[0]]
        rows.append(Row(measure, task, subject, k, float(drawn[0]), *bounds(drawn[1:]), *paired, units, caveat))
    return rows


def bounds(draws: np.ndarray) -> tuple[float | None, float | None]:
    """The 95% percentile interval of resampled values [R]; None where more than 2.5% of them are not defined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) == 0 or len(draws) - len(defined) > MOST_UNDEFINED * len(draws):
        return None, None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def mean_of(metrics: list[Metric]) -> Metric:
    """The mean of several metrics of the same units."""
    return lambda weights: np.mean([metric(weights) for metric in metrics], axis=0)


def weighted_mean(values: np.ndarray, weights: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Means [R] of values [n] under weights [R, n], of the units `among` [n], or all; NaN without any."""
    chosen = np.ones(len(values)) if among is None else among.astype(np.float64)
    total = weights @ chosen
    return np.divide(weights @ (values * chosen), total, out=np.full(len(total), np.nan), where=total > 0)


def balanced_accuracy(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the accuracies in class and rest of 'score over 0 means class', [R]; 0.5 is chance.

    With as many of each it is the accuracy.
    """
    right = ((scores > 0) == truth).astype(np.float64)
    return (weighted_mean(right, weights, truth) + weighted_mean(right, weights, ~truth)) / 2


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of one of the class > score of one of the rest) + P(equal) / 2, [R] (Hanley & McNeil 1982).

    Args:
        scores: [n].
        truth: whether a unit is of the class, bool [n].
        weights: [R, n].
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    ordered, positive = weights[:, order], truth[order].astype(np.float64)
    up = np.add.reduceat(ordered * positive, starts, axis=1)
    down = np.add.reduceat(ordered * (1 - positive), starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(1) * down.sum(1)
    wins = (up * (below + down / 2)).sum(1)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
