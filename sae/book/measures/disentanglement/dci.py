"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018, openreview By-7dz-AZ).

    scores = dci(codes, factors)                         # fits one classifier a factor, on the live latents
    scores = dci_of(importance)                          # of a matrix [L, K]

A classifier learns every factor from all latents together; R_jk is how much it leans on latent j for factor k. Latent
j's disentanglement is 1 - H_K(R_j· / Σ_k R_jk), H_K the entropy to the base of the number of factors, and D is the mean
weighted by Σ_k R_jk. C is the same over columns, to the base of the number of latents. So many live latents that share
a factor lower C and leave D alone, and a latent nothing leans on has no weight in D.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier

from sae.book.measures.disentanglement.arrays import Array, checked, live_latents, split
from sae.config import unknown_choice

Trees = Literal["boosted", "extra"]
PREDICTORS = {
    # Locatello et al. 2019, who take 100 rounds and 10,000 samples: minutes a factor of 40 values
    "boosted": GradientBoostingClassifier(n_estimators=10),
    # every latent is tried at every split, and leaves hold ten: with the usual square root of the latents and leaves of
    # one, trees lean on latents that tell nothing
    "extra": ExtraTreesClassifier(n_estimators=50, max_features=None, min_samples_leaf=10),  # pyright: ignore[reportArgumentType]
}


class Balance(NamedTuple):
    """What an importance matrix says."""

    disentanglement: float
    """D: does a latent serve one factor, 0 to 1; 0 where no latent serves any."""
    completeness: float
    """C: is a factor served by one latent, 0 to 1."""


class DCI(NamedTuple):
    """The three scores, and what they were made from."""

    disentanglement: float
    """D of the importances."""
    completeness: float
    """C of the importances; its logarithm's base is the number of latents counted."""
    informativeness: float
    """Mean over factors of the accuracy on the samples held out."""
    importance: np.ndarray
    """R, float64 [L, K], columns sum to 1 where the classifier found anything; dead latents have 0."""


def dci(
    codes: Array,
    factors: Array,
    *,
    trees: Trees = "boosted",
    train: int = 2000,
    test: int = 2000,
    live: bool = True,
    seed: int = 0,
) -> DCI:
    """Fit a classifier for every factor and read its importances (mean decrease of impurity).

    Args:
        codes: [n, L].
        factors: int64 [n, K].
        trees: "boosted" as Locatello et al. with fewer rounds; "extra" randomised trees (Geurts et al. 2006), for codes
            of hundreds of latents, where boosting takes a tree for every value and round. Values of the two differ.
        train: samples fitted, at most; a seeded draw without replacement.
        test: samples held out for the accuracy, at most; fewer samples than both are shared out in proportion.
        live: leave latents that never vary out of C's base; False counts them.
        seed: of the draw and of the trees.

    Raises:
        ValueError: as `checked`, unknown trees, or fewer than 2 samples to share out.
    """
    if trees not in PREDICTORS:
        raise unknown_choice("trees", trees, PREDICTORS)
    z, v = checked(codes, factors)
    fitted, held = split(len(z), train, test, seed)
    kept = np.flatnonzero(live_latents(z)) if live else np.arange(z.shape[1])
    importance, accuracies = np.zeros((z.shape[1], v.shape[1])), []
    for k, factor in enumerate(v.T):
        if len(kept) == 0 or np.ptp(factor[fitted]) == 0:  # nothing to learn from, or nothing to learn
            accuracies.append(np.mean(factor[held] == np.bincount(factor[fitted]).argmax()))
            continue
        model = clone(PREDICTORS[trees]).set_params(random_state=seed)
        model.fit(z[np.ix_(fitted, kept)], factor[fitted])
        # a split that gains nothing can come out at -1e-19
        importance[kept, k] = model.feature_importances_.clip(min=0)
        accuracies.append(model.score(z[np.ix_(held, kept)], factor[held]))
    balance = dci_of(importance[kept])
    return DCI(*balance, informativeness=float(np.mean(accuracies)), importance=importance)


def dci_of(importance: np.ndarray) -> Balance:
    """D and C of importances R >= 0, [L, K]; see the module's text.

    Raises:
        ValueError: not a matrix of two factors or more, or a negative importance.
    """
    R = np.asarray(importance, dtype=np.float64)
    if R.ndim != 2 or R.shape[1] < 2 or (R < 0).any():
        raise ValueError(
            f"importance: expected numbers >= 0 of shape [L, K] with K >= 2, got {R.shape}, least {R.min()}"
        )
    return Balance(_concentration(R), _concentration(R.T))


def _concentration(R: np.ndarray) -> float:
    """Mean over rows, weighted by their sums, of 1 - entropy of the row to the base of its length."""
    total = R.sum()
    if total == 0:
        return 0.0
    if R.shape[1] == 1:  # nothing else to be spread over
        return 1.0
    weight = R.sum(1, keepdims=True)
    share = R / np.where(weight > 0, weight, 1)
    entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(1)
    return float(((1 - entropy / np.log(R.shape[1])) * weight[:, 0]).sum() / total)
