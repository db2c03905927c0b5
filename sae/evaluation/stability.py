"""How alike the dictionaries are that training finds from different seeds.

stability([run.dictionary.W for run in runs]).best
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.integrate import quad
from scipy.special import betainc
from torch import Tensor

from sae.config import ConfigError
from sae.evaluation.bootstrap import Interval
from sae.evaluation.synthetic.metrics import RECOVERED, cosines, match


class Stability(NamedTuple):
    """Likeness of dictionaries, mean over all pairs of them; signs and lengths of atoms do not count."""

    best: float
    """Mean over the atoms of both dictionaries of the largest |cos| to an atom of the other."""
    one_to_one: float
    """Mean |cos| over the one-to-one pairs with the largest sum (Hungarian), as many as the smaller has atoms."""
    matched: float
    """Share of those pairs with |cos| over 0.9."""
    best_of_random: float
    """What `best` is on average for independent random directions of these numbers and this width."""
    pairs: tuple[float, ...]
    """`best` of every pair, in the order (0, 1), (0, 2), ..., (1, 2), ..."""


def stability(dictionaries: Sequence[Tensor]) -> Stability:
    """Cosine between dictionaries of several seeds (Sharkey et al. 2022; Paulo and Belrose 2025, arXiv:2501.16615).

    Args:
        dictionaries: atoms [F_i, d] of two or more seeds. Leave out dead latents' atoms, which stay where they began;
            an atom of length zero has cosine 0 with everything. A pair takes F_i * F_j * 8 bytes.

    Raises:
        ConfigError: fewer than two dictionaries, or one without atoms.
        ValueError: widths that differ.
    """
    if len(dictionaries) < 2 or any(len(atoms) == 0 for atoms in dictionaries):
        sizes = [len(atoms) for atoms in dictionaries]
        raise ConfigError(f"dictionaries: expected two or more with at least one atom each, got {sizes} atoms")
    best, one_to_one, matched, by_chance = [], [], [], []
    for first, second in itertools.combinations(dictionaries, 2):
        likeness = cosines(first, second).abs()
        nearest = (likeness.amax(1).sum() + likeness.amax(0).sum()) / sum(likeness.shape)
        best.append(nearest.item())
        paired = match(first, second)
        one_to_one.append(paired.mcc)
        matched.append((paired.cosines.abs() > RECOVERED).double().mean().item())
        rows, columns = likeness.shape
        of_random = rows * random_best(columns, first.shape[1]) + columns * random_best(rows, first.shape[1])
        by_chance.append(of_random / (rows + columns))
    means = (float(np.mean(values)) for values in (best, one_to_one, matched, by_chance))
    return Stability(*means, pairs=tuple(best))


def over_pairs(pairs: Sequence[float]) -> Interval | float:
    """Mean over all pairs of n runs with a 95% interval over runs; of fewer than three runs, the mean alone.

    Every run is in n - 1 pairs, so pairs are not independent, and a spread over them is too narrow. Each run is left
    out in turn with all its pairs (the jackknife of a U-statistic: Arvesen 1969), SE² = (n - 1)/n Σ (θ₋ᵢ - mean θ₋)²,
    and Student's t has n - 1 degrees of freedom.

    Args:
        pairs: in the order (0, 1), (0, 2), ..., (1, 2), ...
    """
    mean, n = float(np.mean(pairs)), round((1 + math.sqrt(1 + 8 * len(pairs))) / 2)
    if n < 3:
        return mean
    runs = list(itertools.combinations(range(n), 2))
    without = [float(np.mean([p for run, p in zip(runs, pairs, strict=True) if i not in run])) for i in range(n)]
    error = math.sqrt((n - 1) * np.var(without))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Interval(mean, mean - half, mean + half)


def random_best(count: int, dim: int) -> float:
    """Expected largest |cos| of one direction to `count` independent random ones in `dim` dimensions.

    cos² of random directions is Beta(1/2, (d - 1)/2), so this is ∫ 1 - P(cos² <= t²)^count dt over t from 0 to 1.
    """
    if dim == 1:
        return 1.0
    return quad(lambda t: 1 - betainc(0.5, (dim - 1) / 2, t * t) ** count, 0, 1, limit=200)[0]
