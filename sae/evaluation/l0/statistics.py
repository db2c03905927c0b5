"""Two statistics of dictionaries by which an L0 can be judged without knowing the features.

**Seed agreement**, the larger the better: MCC of the live atoms of two trainings that differ in their seed alone. Where
L0 is too low, latents stand for mixtures of features that fire together, and where it is too high, the surplus latents
fill up with mixtures that reduce the error a little; there are many such mixtures, and each seed takes others.

**Decoder cosine**, the smaller the better: c_dec = 2/(h (h - 1)) Σ_{i<j} |cos(w_i, w_j)| over the h atoms (Chanin and
Garriga-Alonso 2025, "Sparse but wrong", arXiv:2508.16560v3, eq. 4). Mixtures of the same features are less orthogonal
than the features. Here it is taken over live atoms; dead ones stay where they began.

`sae bench l0` shows where each finds a known L0 (docs/trust.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae.evaluation.bootstrap import MAX_GROUPS, resample_weights
from sae.evaluation.matching.assignment import cosine_similarity, one_to_one
from sae.evaluation.synthetic.sampling import unit

_BLOCK = 1 << 23  # cosines in memory at a time


class Draws(NamedTuple):
    """A statistic with what its resamples give."""

    value: float
    resampled: Tensor
    """float64 [R]."""


def agreement(first: Tensor, second: Tensor, *, resamples: int, seed: int) -> Draws:
    """MCC of live atoms [n, d] and [m, d] of two seeds, resampled over the one-to-one pairs."""
    strength = one_to_one(cosine_similarity(first, second)).strength.double()
    sums, counts = _grouped(strength)
    weights = resample_weights(len(sums), resamples, seed)
    return Draws(strength.mean().item(), (weights @ sums) / (weights @ counts))


def decoder_cosine(atoms: Tensor, *, resamples: int, seed: int) -> Draws:
    """c_dec of live atoms [h, d], resampled over atoms; beyond `MAX_GROUPS` atoms over groups of neighbours.

    A resample weighs the pair (i, j) by how often each of the two was drawn; pairs within a group are left out of it.

    Raises:
        ValueError: fewer than two atoms.
    """
    if len(atoms) < 2:
        raise ValueError(f"expected two atoms or more, got {len(atoms)}")
    directions = unit(atoms.detach().cpu().float())
    h = len(directions)
    group = torch.arange(h) // -(-h // MAX_GROUPS)
    groups = int(group[-1]) + 1
    table = torch.zeros(groups, groups, dtype=torch.float64)
    for rows in torch.arange(h).split(max(1, _BLOCK // h)):
        cosines = (directions[rows] @ directions.T).abs().double()
        cosines[torch.arange(len(rows)), rows] = 0
        by_column = torch.zeros(len(rows), groups, dtype=torch.float64).index_add_(1, group, cosines)
        table.index_add_(0, group[rows], by_column)
    value = table.sum().item() / (h * (h - 1))
    apart = table.clone().fill_diagonal_(0)
    sizes = torch.bincount(group).double()
    pairs = torch.outer(sizes, sizes).fill_diagonal_(0)
    weights = resample_weights(groups, resamples, seed)
    return Draws(value, ((weights @ apart) * weights).sum(1) / ((weights @ pairs) * weights).sum(1))


def _grouped(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts of values [n] by at most `MAX_GROUPS` groups of neighbours."""
    group = torch.arange(len(values)) // -(-len(values) // MAX_GROUPS)
    groups = int(group[-1]) + 1
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, values)
    return sums, torch.bincount(group, minlength=groups).double()
