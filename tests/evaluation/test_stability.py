"""Likeness of dictionaries: copies, known overlaps, random directions, and the order and signs that must not count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from sae.config import ConfigError
from sae.evaluation.stability import over_pairs, random_best, stability
from sae.evaluation.synthetic.metrics import match


def atoms(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_permuted_sign_flipped_scaled_copy_is_the_same_dictionary() -> None:
    first = atoms(20, 12)
    factors = torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
    result = stability([first, (factors * first)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]])
    assert result[:3] == pytest.approx((1, 1, 1))
    assert result.best > result.best_of_random + 0.2


def test_orthogonal_dictionaries_share_nothing() -> None:
    basis = torch.eye(8)
    assert stability([basis[:4], basis[4:]])[:3] == (0, 0, 0)


def test_a_turned_pair_has_its_cosine_and_a_crowd_on_one_atom_is_seen_by_one_to_one_alone() -> None:
    basis = torch.eye(4, dtype=torch.float64)
    turned = torch.stack([basis[0], math.cos(0.6) * basis[1] + math.sin(0.6) * basis[3], basis[2]])
    result = stability([basis[:3], turned])
    assert result.best == pytest.approx((2 + math.cos(0.6)) / 3)
    assert result.one_to_one == pytest.approx(result.best)
    assert result.matched == pytest.approx(2 / 3)
    # all three atoms of the crowd have a perfect partner; of the other three only one has
    crowd = basis[:1].expand(3, 4)
    assert stability([crowd, basis[:3]]).best == pytest.approx((3 + 1) / 6)
    assert stability([crowd, basis[:3]]).one_to_one == pytest.approx(1 / 3)


def test_several_seeds_are_averaged_over_their_pairs_in_order() -> None:
    seeds = [atoms(10, 6, seed) for seed in range(3)]
    result = stability(seeds)
    pairs = [stability([seeds[i], seeds[j]]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert result.pairs == tuple(pair.best for pair in pairs)
    for field in ("best", "one_to_one", "matched", "best_of_random"):
        assert getattr(result, field) == pytest.approx(sum(getattr(pair, field) for pair in pairs) / 3)
    assert pairs[0].one_to_one == pytest.approx(match(seeds[0], seeds[1]).mcc)
    assert stability(seeds[::-1])[:4] == pytest.approx(result[:4])


@pytest.mark.parametrize(("count", "dim"), [(1, 2), (1, 3), (5, 2)])
def test_the_best_of_random_directions_in_closed_form(count: int, dim: int) -> None:
    """|cos| of an angle even on [0, π/2] in the plane; even on [0, 1] on the sphere (Archimedes)."""
    plane = {1: 2 / math.pi, 5: None}[count]
    if dim == 3:
        assert random_best(count, dim) == pytest.approx(1 / 2)
    elif plane is not None:
        assert random_best(count, dim) == pytest.approx(plane)
    else:
        # the least of five even angles on [0, π/2]
        angle = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(0)).amin(1) * math.pi / 2
        assert random_best(count, dim) == pytest.approx(angle.cos().mean().item(), abs=0.001)
    assert random_best(count, 1) == 1


def test_random_dictionaries_are_as_alike_as_is_said() -> None:
    result = stability([atoms(400, 24, 0), atoms(600, 24, 1)])
    assert result.best == pytest.approx(result.best_of_random, abs=0.005)
    assert 0.5 < result.best < 0.7


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
        stability(given)


def test_refusals_are_ours() -> None:
    with pytest.raises(ConfigError):
        stability([])


def test_the_interval_over_pairs_is_exact_where_every_seed_adds_its_share() -> None:
    # pairs a_i + a_j have the mean 2 mean(a), whose standard error is that of a mean of n independent numbers
    shares = [0.1, 0.25, 0.2, 0.4, 0.3]
    found = over_pairs([a + b for a, b in itertools.combinations(shares, 2)])
    half = stats.t.ppf(0.975, 4) * 2 * np.std(shares, ddof=1) / math.sqrt(5)
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_two_runs_have_one_pair_and_no_interval() -> None:
    assert over_pairs([0.7]) == 0.7
