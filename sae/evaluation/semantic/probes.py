"""Logistic regression on standardised numbers, as a direction and a threshold in the numbers as they are."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

ITERATIONS = 1000


class Probe(NamedTuple):
    """score(x) = x @ direction + offset; over 0 means the class."""

    direction: np.ndarray
    """float64 [d]."""
    offset: float

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Log-odds of rows [n, d], [n]."""
        return x @ self.direction + self.offset


def fit_probe(x: np.ndarray, truth: np.ndarray, *, balanced: bool = True) -> Probe:
    """L2-penalised logistic regression, C = 1, on x [n, d] of which every column is standardised.

    Columns that do not vary have weight 0. Without column, the score is 0: the class is never told.

    Args:
        x: training rows [n, d].
        truth: bool [n], both values among them.
        balanced: whether class and rest weigh the same.
    """
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    varies = deviation > 1e-9 * (np.abs(mean) + 1e-9)
    direction = np.zeros(x.shape[1])
    if not varies.any():
        return Probe(direction, 0.0)
    scaled = (x[:, varies] - mean[varies]) / deviation[varies]
    model = LogisticRegression(class_weight="balanced" if balanced else None, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        # a separable class has no optimum without the penalty, and a slow one with it
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled, truth)
    direction[varies] = model.coef_[0] / deviation[varies]
    return Probe(direction, float(np.ravel(model.intercept_)[0]) - float(mean @ direction))
