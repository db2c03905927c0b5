"""Mutual information of latents and factors under two protocols, and what is read off it: MIG and modularity.

    information = mutual_information(codes, factors)                                    # means, 20 bins
    information = mutual_information(means, factors, protocol="chen2018", log_variances=log_variances)
    mig_of(*information), modularity_of(information.matrix)

The protocols differ in everything but the gap itself, and give values of different orders.

locatello2019 (Locatello et al., arXiv:1811.12359): the latent is the code, a VAE's mean, in 20 bins of equal width from
its least to its largest value; I(z_j; v_k) is that of the counts of (bin, value), plug-in, so that noise alone has up
to 19 (values - 1) / (2 n) nats; MIG divides by the factor's entropy in the samples. Any code will do. A perfect code of
a factor with 40 values falls into 20 bins: its share is ln 20 / ln 40 and not 1. All five factors of dSprites count.

chen2018 (Chen et al., arXiv:1802.04942): the latent is a sample of q(z_j | x), Gaussian; I(z_j; v_k) is H(z_j) -
H(z_j | v_k), both by Monte Carlo, q(z_j) being the mixture of q(z_j | x_n) over the samples, and below 0 counts as 0;
MIG divides by ln(number of values). A code without a posterior has no such I. dSprites without its shape.

Where posteriors are narrower than the samples lie apart, chen2018 is biased upwards: a draw is then near its own
sample alone, and fewer of a value's samples make a lower entropy. I / ln V of a latent that has nothing to do with the
factor, for standard normal means and V = 4 values: .04, .28 and .82 for deviations of .1, .01 and .001 with n = 500
samples, .08 and .48 for .01 and .001 with n = 2000. Compare values of codes with like posteriors and the same n alone,
beside those of shuffled labels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from sae.book.measures.disentanglement.arrays import Array, checked
from sae.config import unknown_choice
from sae.evaluation.arrays import entropy, to_numpy

Protocol = Literal["locatello2019", "chen2018"]
BINS = 20
BLOCK = 4_000_000  # numbers held at a time
MIXTURE_BLOCK = 200_000  # the same where they are gone over many times, to fit a cache


class Information(NamedTuple):
    """How many nats every latent tells of every factor."""

    matrix: np.ndarray
    """I(z_j; v_k) >= 0, float64 [L, K]."""
    entropies: np.ndarray
    """What each factor's column is normalised by, nats, float64 [K]."""


def mutual_information(
    codes: Array,
    factors: Array,
    *,
    protocol: Protocol = "locatello2019",
    log_variances: Array | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Information:
    """Mutual information of every latent with every factor; see the module's text.

    Args:
        codes: [n, L]; under chen2018 the posterior's means.
        factors: int64 [n, K].
        log_variances: of the posterior, [n, L]; chen2018 alone.
        samples: draws from q(z) behind each entropy, chen2018 alone (Chen et al.: 10,000, on the whole data set).
        seed: of those draws.

    Raises:
        ValueError: as `checked`, an unknown protocol, or log-variances missing, given in vain, of another shape, or not
            finite.
    """
    z, v = checked(codes, factors)
    if protocol == "locatello2019":
        if log_variances is not None:
            raise ValueError("log_variances: locatello2019 reads means alone; leave them out or ask for chen2018")
        matrix = np.stack([_binned(z, column) for column in v.T], axis=1)
        return Information(matrix, np.array([entropy(np.bincount(column)) for column in v.T]))
    if protocol != "chen2018":
        raise unknown_choice("protocol", protocol, ("locatello2019", "chen2018"))
    if log_variances is None:
        raise ValueError("log_variances: chen2018 needs those of q(z | x); take locatello2019 for other codes")
    spread = to_numpy(log_variances)
    if spread.shape != z.shape:
        raise ValueError(f"log_variances {spread.shape}: expected the codes' shape {z.shape}")
    if not np.isfinite(spread).all():
        bad = np.count_nonzero(~np.isfinite(spread))
        raise ValueError(f"log_variances: expected finite numbers, got {bad} that are not")
    return _sampled(z.astype(np.float64), spread.astype(np.float64), v, samples, np.random.default_rng(seed))


def mig_of(matrix: np.ndarray, entropies: np.ndarray) -> float:
    """Mutual information gap: mean over factors of (largest - second largest I(.; v_k)) / entropy (Chen et al. 2018).

    Args:
        matrix: I [L, K]; a second latent that isn't there tells nothing.
        entropies: [K].
    """
    padded = np.concatenate([np.zeros((2, matrix.shape[1])), matrix])
    second, first = np.sort(padded, axis=0)[-2:]
    return float(((first - second) / entropies).mean())


def modularity_of(matrix: np.ndarray) -> float:
    """Mean over latents of 1 - Σ_{k≠best} I²(z_j; v_k) / ((K - 1) I²(z_j; v_best)) (Ridgeway & Mozer 2018, eq. 2).

    A latent that tells nothing of any factor counts as 0, as in Locatello et al.: drop the dead ones first.

    Args:
        matrix: I [L, K], K >= 2.
    """
    squares = np.square(matrix)
    best = squares.max(1)
    rest = (squares.sum(1) - best) / (matrix.shape[1] - 1)
    scores = np.where(best > 0, 1 - rest / np.where(best > 0, best, 1), 0.0)
    return float(scores.mean()) if len(scores) else 0.0


def binned(codes: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Which of `bins` bins of equal width, from its least to its largest value, each latent [n, L] is in: int64."""
    codes = codes.astype(np.float64)
    low, high = codes.min(0), codes.max(0)
    width = np.where(high > low, high - low, 1) / bins
    return np.minimum((codes - low) / width, bins - 1).astype(np.int64)


def _binned(codes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Plug-in I of every binned latent with one factor int64 [n]: float64 [L]."""
    values = int(factor.max()) + 1
    block = max(1, BLOCK // len(codes))
    parts = []
    for start in range(0, codes.shape[1], block):
        places = binned(codes[:, start : start + block]) * values + factor[:, None]
        latents = places.shape[1]
        places += np.arange(latents) * (BINS * values)
        counts = np.bincount(places.ravel(), minlength=latents * BINS * values).reshape(latents, BINS, values)
        parts.append(entropy(counts.sum(1)) + entropy(counts.sum(2)) - entropy(counts.reshape(latents, -1)))
    return np.concatenate(parts).clip(min=0)


def _sampled(
    means: np.ndarray, log_variances: np.ndarray, factors: np.ndarray, samples: int, rng: np.random.Generator
) -> Information:
    marginal = _mixture_entropy(means, log_variances, samples, rng)
    columns, entropies = [], []
    for factor in factors.T:
        values = int(factor.max()) + 1
        given = np.zeros_like(marginal)
        for value in range(values):
            rows = np.flatnonzero(factor == value)
            given += len(rows) / len(factor) * _mixture_entropy(means[rows], log_variances[rows], samples, rng)
        columns.append((marginal - given).clip(min=0))
        entropies.append(math.log(values))
    return Information(np.stack(columns, axis=1), np.array(entropies))


def _mixture_entropy(
    means: np.ndarray, log_variances: np.ndarray, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Entropy of the mixture of n Gaussians in every latent, by draws from it: E[-log q(z_j)], nats [L]."""
    chosen = rng.integers(len(means), size=samples)
    noise = rng.standard_normal((samples, means.shape[1]))
    centres, log_deviation = torch.from_numpy(means), torch.from_numpy(log_variances) / 2
    draws = centres[chosen] + log_deviation[chosen].exp() * torch.from_numpy(noise)
    inverse, total = (-log_deviation).exp(), torch.zeros(means.shape[1], dtype=torch.float64)
    for some in draws.split(max(1, MIXTURE_BLOCK // means.size)):
        square = ((some[:, None] - centres) * inverse).square()
        density = torch.logsumexp(-0.5 * square - log_deviation, 1) - 0.5 * math.log(2 * math.pi) - math.log(len(means))
        total -= density.sum(0)
    return (total / samples).numpy()
