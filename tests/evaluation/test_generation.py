"""Measures of generated samples against closed forms of Gaussians, brute force, and generators that fail on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sae.book.measures.generation import frechet, manifolds, modes, score_generator
from sae.config import ConfigError

CLASSES = np.repeat(np.arange(10), 30)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def white(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Samples with mean 0 and covariance I to the last digit."""
    x = normal(n, dim, seed=seed)
    x -= x.mean(0)
    return np.linalg.qr(x)[0] * math.sqrt(n - 1)


def blobs(seed: int = 0, *, only: int = 10) -> np.ndarray:
    """Thirty samples around each of ten corners, [300, 10]; with `only`, around as many of them."""
    return 20 * np.eye(10)[CLASSES % only] + normal(300, 10, seed=seed)


def test_frechet_of_two_gaussians_with_known_moments() -> None:
    """Along common axes: ||μ₁ - μ₂||² + Σ (σ₁ - σ₂)²."""
    first, second = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    mean = np.array([1.0, -2.0, 0.5])
    result = frechet(white(40, 3) * first, white(90, 3, seed=1) * second + mean)
    assert result.distance == pytest.approx((mean**2).sum() + ((first - second) ** 2).sum())
    assert result.of_a_constant == pytest.approx((first**2).sum())


def test_frechet_is_the_formula_with_the_matrix_root() -> None:
    x, y = normal(60, 5) @ normal(5, 5, seed=2), normal(80, 5, seed=1) @ normal(5, 5, seed=3) + 1
    one, two = np.cov(x.T), np.cov(y.T)
    root = sqrtm(one @ two)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * np.real(root))
    assert frechet(x, y).distance == pytest.approx(wanted)
    assert frechet(y, x).distance == pytest.approx(wanted)


def test_frechet_ignores_rotation_and_order_and_is_zero_for_the_same_samples_even_of_low_rank() -> None:
    x, y = normal(50, 6), normal(50, 6, seed=1)
    rotation = np.linalg.qr(normal(6, 6, seed=2))[0]
    assert frechet(x @ rotation, y @ rotation).distance == pytest.approx(frechet(x, y).distance)
    assert frechet(x, x[::-1]).distance == pytest.approx(0, abs=1e-10)
    few = normal(4, 30)
    assert frechet(few, few).distance == pytest.approx(0, abs=1e-10)
    assert frechet(torch.from_numpy(x), torch.from_numpy(y).requires_grad_()) == frechet(x, y)


def test_a_constant_at_the_mean_has_the_distance_that_is_said() -> None:
    x = blobs()
    result = frechet(x, np.broadcast_to(x.mean(0), (20, 10)))
    assert result.distance == pytest.approx(result.of_a_constant)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_brute_force(neighbours: int) -> None:
    x, y = normal(40, 2), 1.5 * normal(50, 2, seed=1) + 1

    def inside(points: np.ndarray, others: np.ndarray) -> float:
        radius = [sorted(math.dist(o, p) for p in others)[neighbours] for o in others]
        hits = [any(math.dist(p, o) <= r for o, r in zip(others, radius, strict=True)) for p in points]
        return sum(hits) / len(hits)

    result = manifolds(x, y, neighbours=neighbours)
    assert result == pytest.approx((inside(y, x), inside(x, y)))
    assert 0 < result.precision < 1


def test_manifolds_over_several_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(40, 2), normal(50, 2, seed=1) + 1
    whole = manifolds(x, y)
    monkeypatch.setattr("sae.book.measures.generation.CHUNK", 7)
    assert manifolds(x, y) == whole


def test_precision_sees_fidelity_and_recall_sees_variety() -> None:
    real = blobs()
    assert manifolds(real, real) == (1, 1)
    assert manifolds(real, real + 1000) == (0, 0)
    # two classes of ten, well drawn; then every class, with half of the samples astray
    narrow = manifolds(real, blobs(1, only=2))
    assert narrow.precision > 0.75
    assert narrow.recall == pytest.approx(0.2, abs=0.05)
    astray = blobs(1)
    astray[::2] -= 1000
    wide = manifolds(real, astray)
    assert wide.precision == pytest.approx(manifolds(real, blobs(1)[1::2]).precision / 2)
    assert wide.recall > 0.7


def test_modes_count_classes_from_a_tenth_of_their_share_on() -> None:
    real = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    generated = ["a"] * 95 + ["b"] * 3 + ["c"] * 2
    result = modes(real, generated)
    assert (result.hit, result.of) == (3, 3)
    assert result.divergence == pytest.approx(
        0.95 * math.log(0.95 / 0.5) + 0.03 * math.log(0.03 / 0.3) + 0.02 * math.log(0.02 / 0.2)
    )
    assert modes(real, [*generated, "a"]).hit == 1


def test_one_class_of_ten_is_ln_ten_nats_away_and_the_data_themselves_none() -> None:
    assert modes(CLASSES, [3, 3]) == (1, 10, pytest.approx(math.log(10)))
    assert modes(CLASSES, torch.from_numpy(CLASSES)) == (10, 10, 0)


def test_a_good_generator_does_not_fail() -> None:
    score = score_generator(blobs(), blobs(1), CLASSES, CLASSES)
    assert score.failure == ""
    assert score.frechet == frechet(blobs(), blobs(1))
    assert score.manifolds == manifolds(blobs(), blobs(1))
    assert score.modes == modes(CLASSES, CLASSES)


def test_collapsed_diverged_and_useless_seeds_fail_and_say_why() -> None:
    real = blobs()
    collapsed = score_generator(real, blobs(1, only=4), CLASSES, CLASSES % 4)
    assert collapsed.failure == "hits 4 of 10 classes, fewer than half"
    assert score_generator(real, blobs(1, only=5), CLASSES, CLASSES % 5).failure == ""
    diverged = blobs(1)
    diverged[:3, 0] = np.nan
    assert score_generator(real, diverged, CLASSES, CLASSES) == (None, None, None, "3 of 300 samples are not finite")
    # every class is named, yet samples lie far off
    useless = score_generator(real, blobs(1) + 50, CLASSES, CLASSES)
    assert useless.failure.startswith("Fréchet distance 2.5")
    assert useless.modes is not None
    assert useless.modes.hit == 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet(normal(5, 3), normal(5, 2)), "generated: expected features of width 3 .* got 2"),
        (lambda: frechet(normal(5, 3), normal(1, 3)), "two samples or more of each, got 5 and 1"),
        (lambda: frechet(normal(5, 3) * np.inf, normal(5, 3)), "real: 15 of 15 values are not finite"),
        (lambda: manifolds(normal(5, 3), normal(3, 3)), "neighbours 3: .* below 3"),
        (lambda: modes([0, 1], [2]), r"generated_classes: \[2\] are none of the data's \[0, 1\]"),
        (lambda: modes([0, 1], []), "got 2 real and 0 generated"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_samples_come_as_tensors_of_half_the_precision_too() -> None:
    x, y = (torch.from_numpy(blobs(seed)).bfloat16() for seed in (0, 1))
    score = score_generator(x, y.requires_grad_(), CLASSES, CLASSES)
    assert score.frechet == frechet(x.double(), y.double())
