"""Does a latent mean one factor, and is a factor in one latent: DCI, modularity and MIG, with their controls.

    scores = disentanglement(codes, factors)             # codes [n, L], factors int64 [n, K] of the same samples
    scores.disentanglement, scores.modularity            # of live latents
    for name, (codes, factors) in controls(codes, factors).items(): ...

Latents of an overcomplete sparse code can each mean one thing and still share factors: their MIG and completeness are
near zero by construction. Lead with disentanglement and modularity, which ask what a latent means, on live latents.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier
from torch import Tensor

from sae.config import unknown_choice
from sae.evaluation.arrays import entropy, to_numpy

Array: TypeAlias = np.ndarray | Tensor
Trees = Literal["boosted", "extra"]
PREDICTORS = {
    # Locatello et al. 2019 fit 100 rounds to 10,000 samples: minutes for a factor of 40 values
    "boosted": GradientBoostingClassifier(n_estimators=10),
    # every split tries every latent, and leaves hold ten samples: with scikit-learn's defaults (the square root of the
    # latents, leaves of one) the trees lean on latents that carry no information
    "extra": ExtraTreesClassifier(n_estimators=50, max_features=None, min_samples_leaf=10),  # pyright: ignore[reportArgumentType]
}
BINS = 20
BLOCK = 4_000_000  # numbers held in memory at a time


class Disentanglement(NamedTuple):
    """The scores of one code; all but `informativeness` are over the latents that vary, and 0 if none does."""

    disentanglement: float
    """DCI's D: a latent serves one factor."""
    completeness: float
    """DCI's C: a factor is served by one latent."""
    informativeness: float
    """DCI's I: mean accuracy over factors on held-out samples."""
    modularity: float
    """A latent shares information with one factor."""
    mig: float
    """A factor's information is in one latent."""
    importance: np.ndarray
    """DCI's importances, float64 [L, K]."""


class DCI(NamedTuple):
    """The three scores of `dci`, and the importances behind them."""

    disentanglement: float
    """D: does a latent serve one factor, 0 to 1; 0 if no latent serves any."""
    completeness: float
    """C: is a factor served by one latent, 0 to 1; its logarithm's base is the number of live latents."""
    informativeness: float
    """I: mean over factors of the accuracy on held-out samples."""
    importance: np.ndarray
    """R, float64 [L, K]; columns sum to 1 unless the classifier learned nothing, dead latents have 0."""


class Information(NamedTuple):
    """Information of every latent about every factor."""

    matrix: np.ndarray
    """I(z_j; v_k) >= 0, float64 [L, K]."""
    entropies: np.ndarray
    """Entropy of every factor in the samples, nats, float64 [K]."""


class Control(NamedTuple):
    """A code whose scores are known."""

    codes: np.ndarray
    """[n, L]."""
    factors: np.ndarray
    """int64 [n, K]."""


def disentanglement(codes: Array, factors: Array, *, trees: Trees = "boosted", seed: int = 0) -> Disentanglement:
    """Score codes [n, L] against factors int64 [n, K].

    Args:
        codes: means, if the code is random.
        factors: the index of every factor's value.
        trees: see `dci`.
        seed: of the samples and trees that are drawn.

    Raises:
        ValueError: as `checked` and `dci`.
    """
    z, _ = checked(codes, factors)
    information = mutual_information(z, factors)
    D, C, accuracy, importance = dci(z, factors, trees=trees, seed=seed)
    modularity = modularity_of(information.matrix[live_latents(z)])
    return Disentanglement(D, C, accuracy, modularity, mig_of(*information), importance)


def controls(codes: Array, factors: Array, *, seed: int = 0) -> dict[str, Control]:
    """The ceiling and the floor of every score, from the same samples.

    "true_factors" has the factors themselves as codes, one latent each: all scores are near 1, but a factor of V > 20
    values has a MIG of ln 20 / ln V at most. "shuffled_labels" pairs the given codes with other samples' factors: D, C
    and MIG are near 0 and informativeness is at chance. Modularity stays above 0, since every latent is compared with
    its best factor (.35 for 3 factors of 4 values), and more so if factors differ in their number of values, with
    which the bias of I grows.
    """
    z, v = to_numpy(codes), to_numpy(factors)
    order = np.random.default_rng(seed).permutation(len(v))
    return {"true_factors": Control(v.astype(np.float64), v), "shuffled_labels": Control(z, v[order])}


def dci(
    codes: Array, factors: Array, *, trees: Trees = "boosted", train: int = 2000, test: int = 2000, seed: int = 0
) -> DCI:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018, openreview By-7dz-AZ).

    A classifier learns every factor from all live latents together; R_jk is its importance (mean decrease of impurity)
    of latent j for factor k.

    Args:
        codes: [n, L].
        factors: int64 [n, K].
        trees: "boosted" as Locatello et al., with fewer rounds; "extra" randomised trees (Geurts et al. 2006), for
            codes of hundreds of latents, where boosting fits a tree for every value and round. The two give different
            values.
        train: samples to fit, at most; a seeded draw without replacement.
        test: held-out samples for the accuracy, at most; fewer samples than both are divided in proportion.
        seed: of the draw and of the trees.

    Raises:
        ValueError: as `checked`, unknown trees, or fewer than 2 samples to divide.
    """
    if trees not in PREDICTORS:
        raise unknown_choice("trees", trees, PREDICTORS)
    z, v = checked(codes, factors)
    fitted, heldout = split(len(z), train, test, seed)
    live = np.flatnonzero(live_latents(z))
    importance, accuracies = np.zeros((z.shape[1], v.shape[1])), []
    for k, factor in enumerate(v.T):
        if len(live) == 0 or np.ptp(factor[fitted]) == 0:  # nothing to learn from, or nothing to learn
            accuracies.append(np.mean(factor[heldout] == np.bincount(factor[fitted]).argmax()))
            continue
        model = clone(PREDICTORS[trees]).set_params(random_state=seed)
        model.fit(z[np.ix_(fitted, live)], factor[fitted])
        # a split that gains nothing can come out at -1e-19
        importance[live, k] = model.feature_importances_.clip(min=0)
        accuracies.append(model.score(z[np.ix_(heldout, live)], factor[heldout]))
    return DCI(*dci_of(importance[live]), float(np.mean(accuracies)), importance)


def dci_of(importance: np.ndarray) -> tuple[float, float]:
    """D and C of importances R >= 0, [L, K].

    Latent j's disentanglement is 1 - H_K(R_j· / Σ_k R_jk), H_K the entropy to base K, and D is the mean weighted by
    Σ_k R_jk; C is the same over columns, to base L. Many latents that share a factor lower C and not D, and a latent of
    no importance has no weight in D.

    Raises:
        ValueError: not a matrix of two factors or more, or a negative importance.
    """
    R = np.asarray(importance, dtype=np.float64)
    if R.ndim != 2 or R.shape[1] < 2 or (R < 0).any():
        raise ValueError(
            f"importance: expected numbers >= 0 of shape [L, K] with K >= 2, got {R.shape}, least {R.min()}"
        )
    return _concentration(R), _concentration(R.T)


def _concentration(R: np.ndarray) -> float:
    """Mean over rows, weighted by their sums, of 1 - entropy of the row to the base of its length."""
    R = R[R.sum(1) > 0]
    if not len(R):
        return 0.0
    if R.shape[1] == 1:  # nothing else to be spread over
        return 1.0
    return float(np.average(1 - entropy(R) / np.log(R.shape[1]), weights=R.sum(1)))


def mutual_information(codes: Array, factors: Array) -> Information:
    """I(z_j; v_k) of codes [n, L] and factors int64 [n, K], as Locatello et al. 2019 (arXiv:1811.12359) estimate it.

    Latents are cut into 20 bins of equal width, from the least to the largest value; I is that of the counts of (bin,
    value), plug-in, so noise alone has up to 19 (values - 1) / (2 n) nats. A perfect code of a factor with 40 values
    falls into 20 bins: its share of the factor's entropy is ln 20 / ln 40 and not 1.

    Raises:
        ValueError: as `checked`.
    """
    z, v = checked(codes, factors)
    matrix = np.stack([_information(z, factor) for factor in v.T], axis=1)
    return Information(matrix, np.array([entropy(np.bincount(factor)) for factor in v.T]))


def _information(codes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Plug-in I of every binned latent with one factor int64 [n]: float64 [L]."""
    values = int(factor.max()) + 1
    block = max(1, BLOCK // len(codes))
    parts = []
    for start in range(0, codes.shape[1], block):
        cells = binned(codes[:, start : start + block]) * values + factor[:, None]
        latents = cells.shape[1]
        cells += np.arange(latents) * (BINS * values)
        counts = np.bincount(cells.ravel(), minlength=latents * BINS * values).reshape(latents, BINS, values)
        parts.append(entropy(counts.sum(1)) + entropy(counts.sum(2)) - entropy(counts.reshape(latents, -1)))
    return np.concatenate(parts).clip(min=0)


def binned(codes: np.ndarray) -> np.ndarray:
    """Index of the bin of every value of codes [n, L], of `BINS` of equal width over each latent's range: int64."""
    codes = codes.astype(np.float64)
    low, high = codes.min(0), codes.max(0)
    width = np.where(high > low, high - low, 1) / BINS
    return np.minimum((codes - low) / width, BINS - 1).astype(np.int64)


def mig_of(matrix: np.ndarray, entropies: np.ndarray) -> float:
    """Mutual information gap: mean over factors of (largest - second largest I(.; v_k)) / entropy (Chen et al. 2018).

    Args:
        matrix: I [L, K]; with one latent the second largest is 0.
        entropies: [K].
    """
    padded = np.concatenate([np.zeros((2, matrix.shape[1])), matrix])
    second, first = np.sort(padded, axis=0)[-2:]
    return float(((first - second) / entropies).mean())


def modularity_of(matrix: np.ndarray) -> float:
    """Mean over latents of 1 - Σ_{k≠best} I²(z_j; v_k) / ((K - 1) I²(z_j; v_best)) (Ridgeway & Mozer 2018, eq. 2).

    A latent without information on any factor counts as 0, as in Locatello et al.: drop dead latents first.

    Args:
        matrix: I [L, K], K >= 2.
    """
    squares = np.square(matrix)
    best = squares.max(1)
    rest = (squares.sum(1) - best) / (matrix.shape[1] - 1)
    scores = np.where(best > 0, 1 - rest / np.where(best > 0, best, 1), 0.0)
    return float(scores.mean()) if len(scores) else 0.0


def checked(codes: Array, factors: Array) -> tuple[np.ndarray, np.ndarray]:
    """Codes as floating point [n, L], and factors with their values numbered from 0 as int64 [n, K].

    Raises:
        ValueError: other shapes or kinds, no samples, codes that aren't finite, fewer than two factors, or a factor
            with one value.
    """
    z, v = to_numpy(codes), to_numpy(factors)
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or len(z) == 0:
        raise ValueError(
            f"expected codes [n, L] and factors [n, K] of the same n > 0 samples, got {z.shape}, {v.shape}"
        )
    if not np.issubdtype(v.dtype, np.integer):
        raise ValueError(f"factors: expected integers, the index of every factor's value, got {v.dtype}")
    if v.shape[1] < 2:
        raise ValueError(f"factors {v.shape}: expected at least two columns; one factor can't be confused with another")
    z = z if np.issubdtype(z.dtype, np.floating) else z.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"codes: expected finite numbers, got {np.count_nonzero(~np.isfinite(z))} that are not")
    numbered = np.stack([np.unique(column, return_inverse=True)[1] for column in v.T], axis=1).astype(np.int64)
    if (numbered.max(0) == 0).any():
        constant = np.flatnonzero(numbered.max(0) == 0).tolist()
        raise ValueError(f"factors: columns {constant} have one value only in these samples; leave them out")
    return z, numbered


def live_latents(codes: Array) -> np.ndarray:
    """Which latents vary over the samples, bool [L]; a latent that is zero throughout is dead."""
    z = to_numpy(codes)
    return z.max(0) > z.min(0)


def split(n: int, train: int, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint seeded draws of at most `train` and `test` of n samples, in proportion if n is less than both.

    Raises:
        ValueError: n, `train` or `test` leave a side empty.
    """
    fitted = min(train, n * train // max(train + test, 1))
    heldout = min(test, n - fitted)
    if fitted < 1 or heldout < 1:
        raise ValueError(f"train={train}, test={test}: {n} samples leave nothing to fit or nothing to hold out")
    order = np.random.default_rng(seed).permutation(n)
    return order[:fitted], order[fitted : fitted + heldout]
