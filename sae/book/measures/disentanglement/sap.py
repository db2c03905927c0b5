"""Separated attribute predictability (Kumar et al. 2018, openreview H1kG7GZAW): does one latent alone tell a factor?

    sap(codes, factors)                                  # categorical, as Locatello et al. 2019
    sap(codes, factors, continuous=True)                 # R² of a line: for wide codes, and ordered factors

The score is the mean over factors of the gap between the best and the second best latent's score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.svm import LinearSVC

from sae.book.measures.disentanglement.arrays import Array, checked, live_latents, split


def sap(
    codes: Array,
    factors: Array,
    *,
    continuous: bool | Sequence[bool] = False,
    train: int = 2000,
    test: int = 2000,
    seed: int = 0,
) -> float:
    """Score every latent on every factor alone and take the gap.

    A categorical factor is scored by the accuracy, on samples held out, of a linear support vector machine with C = .01
    and balanced classes (Locatello et al. take 10,000 samples and 5,000 held out); a continuous one by the squared
    correlation over the samples, which misses a factor that wraps around, as an orientation does.

    Args:
        codes: [n, L]. Categorical scores fit L·K machines: take continuous ones for hundreds of latents.
        factors: int64 [n, K].
        continuous: of all factors, or of each.
        train: samples fitted, at most.
        test: samples held out, at most.
        seed: of the draw of the samples, and of the machines.

    Raises:
        ValueError: as `checked`, or `continuous` of another length than the factors.
    """
    z, v = checked(codes, factors)
    kinds = [continuous] * v.shape[1] if isinstance(continuous, bool) else list(continuous)
    if len(kinds) != v.shape[1]:
        raise ValueError(f"continuous: expected one answer a factor, {v.shape[1]}, got {len(kinds)}")
    fitted, held = split(len(z), train, test, seed)
    columns = [
        _squared_correlation(z, factor) if kind else _accuracies(z, factor, fitted, held, seed)
        for kind, factor in zip(kinds, v.T, strict=True)
    ]
    return sap_of(np.stack(columns, axis=1))


def sap_of(scores: np.ndarray) -> float:
    """Mean over factors of the best latent's score less the second best's, of scores [L, K], L >= 2.

    Raises:
        ValueError: fewer than two latents.
    """
    if len(scores) < 2:
        raise ValueError(f"scores {scores.shape}: expected [L, K] with L >= 2; a gap is between two latents")
    second, first = np.sort(scores, axis=0)[-2:]
    return float((first - second).mean())


def _squared_correlation(codes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    centred = codes.astype(np.float64) - codes.mean(0, dtype=np.float64)
    wanted = factor - factor.mean()
    together = np.square(wanted @ centred)
    apart = np.square(centred).sum(0) * np.square(wanted).sum()
    return np.where(live_latents(codes), together / np.where(apart > 0, apart, 1), 0.0)


def _accuracies(codes: np.ndarray, factor: np.ndarray, fitted: np.ndarray, held: np.ndarray, seed: int) -> np.ndarray:
    if np.ptp(factor[fitted]) == 0:  # nothing to learn
        return np.full(codes.shape[1], np.mean(factor[held] == factor[fitted[0]]))

    def accuracy(latent: np.ndarray) -> float:
        machine = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
        return machine.fit(latent[fitted, None], factor[fitted]).score(latent[held, None], factor[held])

    return np.array([accuracy(latent) for latent in codes.T])
