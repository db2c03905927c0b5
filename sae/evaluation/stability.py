"""How alike the dictionaries are that training gives from different seeds.

pairs = pair_cosines([run.dictionary.W for run in runs])
over_pairs(pairs)                                # their mean with an interval over runs
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from torch import Tensor

from sae.config import ConfigError
from sae.evaluation.bootstrap import Interval
from sae.evaluation.synthetic.metrics import cosines


def pair_cosines(dictionaries: Sequence[Tensor]) -> tuple[float, ...]:
    """For every pair (0, 1), (0, 2), ..., (1, 2), ...: the largest |cos| of an atom to one of the other dictionary.

    The mean is over the atoms of both, so signs and lengths of atoms do not count (Sharkey et al. 2022; Paulo and
    Belrose 2025, arXiv:2501.16615).

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
    means = []
    for first, second in itertools.combinations(dictionaries, 2):
        cosine = cosines(first, second).abs()
        means.append(((cosine.amax(1).sum() + cosine.amax(0).sum()) / sum(cosine.shape)).item())
    return tuple(means)


def over_pairs(pairs: Sequence[float]) -> Interval | float:
    """Mean over all pairs of n runs with a 95% interval over runs; of fewer than three runs, the mean alone.

    Every run is in n - 1 pairs, so pairs are not independent, and their spread is too narrow. Each run is
    left out in turn with all its pairs (the jackknife of a U-statistic: Arvesen 1969), SE² = (n - 1)/n Σ (θ₋ᵢ - mean
    θ₋)², and Student's t has n - 1 degrees of freedom.

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
