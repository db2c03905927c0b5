"""Disentanglement against golden matrices, closed forms and brute force; ceilings and floors of every score.

The golden values are those of Locatello et al.'s library: `ONE_EACH` is 5 codes of 5 factors, one each; stacked on
itself it is ten codes, each factor in two of them ("duplicated"); side by side with itself, five codes of two factors
each out of ten.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from sae.book.measures.disentanglement import (
    binned,
    controls,
    dci,
    dci_of,
    disentanglement,
    live_latents,
    mig_of,
    modularity_of,
    mutual_information,
    split,
)

ONE_EACH = 5.0 * np.eye(5)
DUPLICATED = np.vstack([ONE_EACH, ONE_EACH])
TWO_FACTORS_A_CODE = np.hstack([ONE_EACH, ONE_EACH])
EMPTY_CODE = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
HALF = 1 - math.log(2) / math.log(10)


def some_factors(n: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(sizes, size=(n, len(sizes)))


def rotated(factors: np.ndarray) -> np.ndarray:
    """Codes in which every factor is spread evenly over all latents."""
    centred = (factors - factors.mean(0)) / factors.std(0)
    width = factors.shape[1]
    angle = np.outer(np.arange(width), np.arange(width)) * 2 * np.pi / width
    return centred @ (np.cos(angle) + np.sin(angle)) / math.sqrt(width)  # Hartley's matrix, orthogonal


@pytest.mark.parametrize(
    ("importance", "disentangled", "complete"),
    [
        (ONE_EACH, 1, 1),
        (DUPLICATED, 1, HALF),
        (TWO_FACTORS_A_CODE, HALF, 1),
        (EMPTY_CODE, 1, 1),
        (ONE_EACH[:2], 1, 1),
        (np.ones((10, 10)), 0, 0),
        (np.zeros((10, 10)), 0, 0),
    ],
    ids=["one each", "duplicated", "two factors a code", "empty code", "factors missed", "even", "nothing"],
)
def test_golden_disentanglement_and_completeness(importance: np.ndarray, disentangled: float, complete: float) -> None:
    assert dci_of(importance) == pytest.approx((disentangled, complete), abs=1e-12)


@pytest.mark.parametrize(
    ("information", "modularity"),
    [
        (ONE_EACH, 1),
        (DUPLICATED, 1),
        (TWO_FACTORS_A_CODE, 1 - 1 / 9),  # the other of two, squared and equal, over K - 1 = 9 others
        (EMPTY_CODE, 2 / 3),  # two codes of 1, one of 0
        (ONE_EACH[:2], 1),
        (np.zeros((10, 10)), 0),
    ],
    ids=["one each", "duplicated", "two factors a code", "empty code", "factors missed", "nothing"],
)
def test_golden_modularity(information: np.ndarray, modularity: float) -> None:
    assert modularity_of(information) == pytest.approx(modularity, abs=1e-12)


def test_golden_mig_of_matrices() -> None:
    entropies = np.full(5, 5.0)
    assert mig_of(ONE_EACH, entropies) == pytest.approx(1)
    assert mig_of(DUPLICATED, entropies) == 0
    assert mig_of(ONE_EACH[:1], entropies) == pytest.approx(1 / 5)  # one latent: nothing is second
    assert mig_of(np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([4.0, 2.0])) == pytest.approx((2 / 4 + 0) / 2)


def test_golden_scores_of_duplicated_codes() -> None:
    factors = some_factors(4000, (10, 10, 10, 10, 10))
    once, twice = factors.astype(float), np.hstack([factors, factors]).astype(float)
    assert mig_of(*mutual_information(once, factors)) > 0.98
    assert mig_of(*mutual_information(twice, factors)) <= 0.1
    assert modularity_of(mutual_information(twice, factors).matrix) > 0.98
    found = dci(twice, factors, trees="extra")
    assert found.disentanglement > 0.98
    assert found.completeness == pytest.approx(HALF, abs=0.05)


def test_mutual_information_is_scikit_learns_of_the_same_bins() -> None:
    factors = some_factors(700, (3, 7))
    rng = np.random.default_rng(1)
    codes = np.stack([factors[:, 0] + rng.normal(size=700), rng.exponential(size=700), np.zeros(700)], 1)
    bins = np.stack([np.digitize(z, np.histogram(z, 20)[1][:-1]) for z in codes.T], 1)
    want = [[mutual_info_score(v, b) for v in factors.T] for b in bins.T]
    found = mutual_information(torch.tensor(codes), torch.tensor(factors))
    np.testing.assert_allclose(found.matrix, want, atol=1e-12)
    np.testing.assert_allclose(found.entropies, [mutual_info_score(v, v) for v in factors.T])
    assert binned(codes).max() == 19


def test_twenty_bins_cap_a_factor_of_forty_values() -> None:
    factors = np.stack(np.meshgrid(np.arange(40), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    codes = factors.astype(float)
    assert mig_of(*mutual_information(codes, factors)) == pytest.approx((math.log(20) / math.log(40) + 1) / 2)


@pytest.mark.parametrize(
    ("codes", "factors", "said"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2), int), "same n"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "expected integers"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "at least two columns"),
        (np.full((3, 2), np.nan), np.eye(3, dtype=int), "6 that are not"),
        (np.zeros((3, 2)), np.array([[0, 5], [1, 5], [2, 5]]), r"columns \[1\] have one value"),
    ],
    ids=["lengths", "floats", "one factor", "nan", "constant factor"],
)
def test_what_cannot_be_scored_is_refused(codes: np.ndarray, factors: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        disentanglement(codes, factors)


def test_factors_count_by_their_values_and_not_their_names() -> None:
    factors = some_factors(500, (4, 3))
    codes = rotated(factors) + np.random.default_rng(0).normal(size=(500, 2)) / 5
    renamed = factors * 1000 - 7
    assert mig_of(*mutual_information(codes, renamed)) == mig_of(*mutual_information(codes, factors))


def test_controls_give_the_ceiling_and_the_floor() -> None:
    factors = some_factors(3000, (4, 4, 4))
    codes = rotated(factors)
    scores = {name: disentanglement(z, v, trees="extra") for name, (z, v) in controls(codes, factors).items()}
    ceiling, floor = scores["true_factors"], scores["shuffled_labels"]
    middle = disentanglement(codes, factors, trees="extra")
    for name in ("disentanglement", "completeness", "informativeness", "modularity", "mig"):
        assert getattr(ceiling, name) > 0.98, name
    for name in ("disentanglement", "completeness", "mig"):
        assert getattr(floor, name) < 0.05, name
    assert floor.informativeness == pytest.approx(1 / 4, abs=0.05)
    assert floor.modularity < 0.5
    # a rotation hides nothing from all latents together, and has every latent serve every factor
    assert middle.informativeness > 0.95
    assert middle.disentanglement < 0.5
    assert middle.mig < 0.3


def test_boosted_trees_find_the_factors_too() -> None:
    factors = some_factors(1500, (3, 4))
    noise = np.random.default_rng(1).normal(size=(1500, 2))
    found = dci(np.hstack([factors, noise]), factors, train=1000, test=500)
    assert found.disentanglement > 0.95
    assert found.completeness > 0.95
    assert found.informativeness > 0.98
    assert found.importance[:2].argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(found.importance.sum(0), 1)


@pytest.mark.parametrize("seed", [0, 15, 47, 78])
def test_importances_below_zero_by_rounding_do_no_harm(seed: int) -> None:
    # with these samples a split that gains nothing comes out at about -1e-16
    rng = np.random.default_rng(seed)
    factor = rng.integers(2, size=400)
    codes = np.hstack([(factor / 2 + rng.normal(size=400) * 0.05)[:, None], rng.normal(size=(400, 4))])
    found = dci(codes.astype(np.float32), np.stack([factor, 1 - factor], 1), train=399, test=1)
    assert found.importance.min() >= 0
    assert found.completeness > 0.98


def test_dead_latents_change_nothing_unless_asked_for() -> None:
    factors = some_factors(800, (4, 4))
    codes = factors.astype(float)
    dead = np.hstack([codes, np.zeros((800, 6))])
    alone, with_dead = disentanglement(codes, factors, trees="extra"), disentanglement(dead, factors, trees="extra")
    for name in ("disentanglement", "completeness", "informativeness", "modularity", "mig"):
        assert getattr(with_dead, name) == pytest.approx(getattr(alone, name)), name
    assert with_dead.importance.shape == (8, 2)
    assert live_latents(dead).tolist() == [True] * 2 + [False] * 6


def test_a_collapsed_code_scores_nothing() -> None:
    factors = some_factors(400, (2, 4))
    scores = disentanglement(np.full((400, 3), 0.5), factors)
    assert scores[:2] == (0, 0)
    assert scores[3:5] == (0, 0)
    assert scores.informativeness == pytest.approx((1 / 2 + 1 / 4) / 2, abs=0.06)


def test_bfloat16_codes_and_codes_of_wide_range_are_binned() -> None:
    factors = some_factors(400, (4, 3))
    codes = torch.tensor(factors).bfloat16()
    assert mig_of(*mutual_information(codes, factors)) == mig_of(*mutual_information(factors, factors))
    # of float16 the range itself overflows
    wide = np.array([[-6e4], [0.0], [6e4]], dtype=np.float16)
    assert binned(wide)[:, 0].tolist() == [0, 10, 19]


def test_the_same_seed_gives_the_same_scores() -> None:
    factors = some_factors(300, (3, 4, 5))
    codes = rotated(factors)

    def scores(seed: int) -> tuple[object, ...]:
        return disentanglement(codes, factors, trees="extra", seed=seed)[:5]

    assert scores(3) == scores(3)
    assert scores(3) != scores(4)


def test_split_shares_out_few_samples_and_refuses_none() -> None:
    fitted, held = split(30, 2000, 1000, seed=0)
    assert (len(fitted), len(held)) == (20, 10)
    assert len(np.union1d(fitted, held)) == 30
    assert [len(side) for side in split(9000, 2000, 1000, seed=0)] == [2000, 1000]
    with pytest.raises(ValueError, match="nothing to hold out"):
        split(1, 2000, 1000, seed=0)
