"""The two scores that hold a factor fixed and look at which latents keep still: beta-VAE's and FactorVAE's.

    factor_vae_score(draw_from_table(codes, factors), sizes=(3, 6, 40, 32, 32), codes=codes)
    beta_vae_score(draw_from_encoder(encode, sizes), sizes)      # encode(factors int64 [n, K]) -> codes [n, L]

Both ask for codes of samples of which one factor is given and the others are random, through a callable
`draw(factor, values, rng)`: int, int64 [n], a generator -> codes [n, L], row i with that factor at `values[i]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sae.book.measures.disentanglement.arrays import Array, checked
from sae.evaluation.arrays import to_numpy

Draw: TypeAlias = Callable[[int, np.ndarray, np.random.Generator], np.ndarray]
ROWS = 16_384  # codes drawn at a time


class Accuracy(NamedTuple):
    """Share of the batches whose fixed factor was named; chance is 1 / number of factors."""

    train: float
    """On the batches the classifier was made from."""
    test: float
    """On further batches: the score."""


def draw_from_table(codes: Array, factors: Array) -> Draw:
    """Draw rows of codes [n, L] whose factors int64 [n, K] fit, with replacement; values as in `factors`.

    The draw raises ValueError for a value that no row has.
    """
    # values stay as they were given, by which they are asked for
    (z, _), v = checked(codes, factors), to_numpy(factors)
    orders = [np.argsort(column, kind="stable") for column in v.T]

    def draw(factor: int, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        order = orders[factor]
        start, end = (np.searchsorted(v[order, factor], values, side=side) for side in ("left", "right"))
        if (start == end).any():
            missing = np.unique(values[start == end]).tolist()
            raise ValueError(f"factor {factor}: no sample of the table has the values {missing}; draw more samples")
        return z[order[rng.integers(start, end)]]

    return draw


def draw_from_encoder(encode: Callable[[np.ndarray], Array], sizes: Sequence[int]) -> Draw:
    """Draw factors, the others uniform over `sizes`, and encode them: encode(int64 [n, K]) -> codes [n, L]."""

    def draw(factor: int, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factors = rng.integers(sizes, size=(len(values), len(sizes)))
        factors[:, factor] = values
        return to_numpy(encode(factors))

    return draw


def factor_vae_score(
    draw: Draw,
    sizes: Sequence[int],
    codes: Array,
    *,
    batch: int = 64,
    train: int = 10_000,
    test: int = 5_000,
    least_deviation: float = 0.0,
    seed: int = 0,
) -> Accuracy:
    """FactorVAE's score (Kim & Mnih 2018, arXiv:1802.05983): the stillest latent of a batch votes for the fixed factor.

    Stillest is least variance within the batch, over the latent's variance in `codes`; the classifier is the majority
    of the votes every latent got. A latent that fires rarely keeps still in most batches whatever is fixed, so sparse
    codes score low.

    Args:
        draw: see the module's text.
        sizes: number of values of each factor, drawn uniformly.
        codes: of samples in which every factor varies [n, L]; Locatello et al. take 10,000.
        batch: samples a vote.
        train: votes that make the classifier (Kim & Mnih 800).
        test: votes it is judged on.
        least_deviation: latents of this standard deviation or less take no part (Kim & Mnih drop those collapsed to the
            prior); 0 drops those that never vary. Where all are dropped the accuracies are 0.
        seed: of everything drawn.

    Raises:
        ValueError: fewer than two factors, a factor of one value, or a count below 1 (`batch`: below 2).
    """
    _check(sizes, batch, train, test)
    z = to_numpy(codes).astype(np.float64)
    variances = z.var(0, ddof=1)
    kept = np.flatnonzero((z.max(0) > z.min(0)) & (np.sqrt(variances) > least_deviation))
    if len(kept) == 0:
        return Accuracy(0.0, 0.0)

    def stillest(factor: int, count: int, rng: np.random.Generator) -> np.ndarray:
        values = np.repeat(rng.integers(sizes[factor], size=count), batch)
        rows = draw(factor, values, rng)[:, kept].reshape(count, batch, -1)
        return (rows.var(1, ddof=1, dtype=np.float64) / variances[kept]).argmin(1)[:, None]

    rng = np.random.default_rng(seed)
    tables = []
    for count in (train, test):
        voters, named = _batches(stillest, len(sizes), count, batch, rng)
        table = np.zeros((len(kept), len(sizes)), dtype=np.int64)
        np.add.at(table, (voters[:, 0], named), 1)
        tables.append(table)
    said = tables[0].argmax(1)
    return Accuracy(*(float(table[np.arange(len(kept)), said].sum() / table.sum()) for table in tables))


def beta_vae_score(
    draw: Draw,
    sizes: Sequence[int],
    *,
    batch: int = 64,
    train: int = 10_000,
    test: int = 5_000,
    seed: int = 0,
) -> Accuracy:
    """beta-VAE's score (Higgins et al. 2017, openreview Sy2fzU9gl): a linear classifier names the fixed factor.

    It reads the mean of |z - z'| over pairs that share the factor's value. The differences are first scaled to unit
    deviation, which Locatello et al. leave out, so that the latents' units don't matter.

    Args:
        draw: see the module's text.
        sizes: number of values of each factor, drawn uniformly for each pair.
        batch: pairs a point.
        train: points the classifier learns from.
        test: points it is judged on.
        seed: of everything drawn.

    Raises:
        ValueError: as `factor_vae_score`.
    """
    _check(sizes, batch, train, test)

    def difference(factor: int, count: int, rng: np.random.Generator) -> np.ndarray:
        values = rng.integers(sizes[factor], size=count * batch)
        # whole numbers without a sign would wrap around
        first, second = (draw(factor, values, rng).astype(np.float64) for _ in range(2))
        gap = np.abs(first - second)
        return gap.reshape(count, batch, -1).mean(1)

    rng = np.random.default_rng(seed)
    points, named = _batches(difference, len(sizes), train, batch, rng)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(points, named)
    return Accuracy(
        float(classifier.score(points, named)),
        float(classifier.score(*_batches(difference, len(sizes), test, batch, rng))),
    )


def _batches(
    point: Callable[[int, int, np.random.Generator], np.ndarray],
    factors: int,
    count: int,
    batch: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` points [count, ...] in all, each of a random factor, and that factor int64 [count]; by factor."""
    most = max(1, ROWS // batch)
    points, named = [], []
    for factor, share in enumerate(np.bincount(rng.integers(factors, size=count), minlength=factors)):
        for start in range(0, share, most):
            points.append(point(factor, min(most, share - start), rng))
        named.append(np.full(share, factor))
    return np.concatenate(points), np.concatenate(named)


def _check(sizes: Sequence[int], batch: int, train: int, test: int) -> None:
    if len(sizes) < 2 or min(sizes) < 2:
        raise ValueError(f"sizes {tuple(sizes)}: expected two factors or more, of two values or more each")
    for name, value, least in (("batch", batch, 2), ("train", train, 1), ("test", test, 1)):
        if value < least:
            raise ValueError(f"{name} {value}: expected at least {least}")
