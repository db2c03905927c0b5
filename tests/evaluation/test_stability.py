"""Likeness of dictionaries: copies, known overlaps, random directions, and the order and signs that must not count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import betainc

from sae.config import ConfigError
from sae.evaluation.stability import over_pairs, pair_cosines


def atoms(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_orthogonal_dictionaries_share_nothing() -> None:
    basis = torch.eye(8)
    assert pair_cosines([basis[:4], basis[4:]]) == (0,)


def test_a_turned_pair_has_its_cosine_and_a_crowd_on_one_atom_counts_from_both_sides() -> None:
    basis = torch.eye(4, dtype=torch.float64)
    turned = torch.stack([basis[0], math.cos(0.6) * basis[1] + math.sin(0.6) * basis[3], basis[2]])
    assert pair_cosines([basis[:3], turned]) == pytest.approx(((2 + math.cos(0.6)) / 3,))
    # all three atoms of the crowd have a perfect partner; of the other three only one has
    crowd = basis[:1].expand(3, 4)
    assert pair_cosines([crowd, basis[:3]]) == pytest.approx(((3 + 1) / 6,))


def test_pairs_of_several_seeds_come_in_order() -> None:
    seeds = [atoms(10, 6, seed) for seed in range(3)]
    pairs = pair_cosines(seeds)
    assert pairs == tuple(pair_cosines([seeds[i], seeds[j]])[0] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert pair_cosines(seeds[::-1]) == pytest.approx(pairs[::-1])


def test_random_dictionaries_are_as_alike_as_independent_directions() -> None:
    # cos² of independent directions is Beta(1/2, (d - 1)/2): the mean of the largest |cos| is an integral
    def largest(count: int) -> float:
        return quad(lambda t: 1 - betainc(0.5, 23 / 2, t * t) ** count, 0, 1, limit=200)[0]

    (cosine,) = pair_cosines([atoms(400, 24, 0), atoms(600, 24, 1)])
    assert cosine == pytest.approx(0.4 * largest(600) + 0.6 * largest(400), abs=0.005)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([atoms(3, 4)], r"two or more .* got \[3\] atoms"),
        ([atoms(3, 4), atoms(0, 4)], r"at least one atom each, got \[3, 0\]"),
        ([atoms(3, 4), atoms(3, 5)], "one width d"),
    ],
)
def test_what_cannot_be_compared_is_refused(given: list[torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pair_cosines(given)


def test_refusals_are_ours() -> None:
    with pytest.raises(ConfigError):
        pair_cosines([])


def test_the_interval_over_pairs_is_exact_where_every_seed_adds_its_share() -> None:
    # pairs a_i + a_j have the mean 2 mean(a), whose standard error is that of a mean of n independent numbers
    shares = [0.1, 0.25, 0.2, 0.4, 0.3]
    found = over_pairs([a + b for a, b in itertools.combinations(shares, 2)])
    half = stats.t.ppf(0.975, 4) * 2 * np.std(shares, ddof=1) / math.sqrt(5)
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_two_runs_have_one_pair_and_no_interval() -> None:
    assert over_pairs([0.7]) == 0.7
