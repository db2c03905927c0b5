"""Neighbourhoods and clusters against their definitions, worked by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from sae.book.measures.embedding import NEIGHBOURS, clusters, neighbourhood_trust
from sae.config import ConfigError
from sae_kernels import SparseCodes


def points(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim))


def ranks(x: np.ndarray) -> np.ndarray:
    """How near j is to i among all others, 1 the nearest, [n, n]; 0 for a point itself."""
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, -1)
    return distance.argsort(1).argsort(1)


def test_trustworthiness_is_its_sum_over_ranks() -> None:
    n, k = 60, NEIGHBOURS
    x = points(n, 6)
    z = x[:, :2]
    of, among = ranks(x), ranks(z)
    intruders = (among >= 1) & (among <= k) & (of > k)
    expected = 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * (of - k)[intruders].sum()
    assert neighbourhood_trust(x, z) == pytest.approx(expected)


def test_a_rotation_keeps_all_neighbourhoods_and_noise_keeps_half() -> None:
    x = points(300, 5)
    rotation = np.linalg.qr(points(5, 5, seed=1))[0]
    assert neighbourhood_trust(x, 7 * x @ rotation + 3) == pytest.approx(1)
    assert neighbourhood_trust(x, points(300, 2, seed=2)) == pytest.approx(0.5, abs=0.05)


def test_more_components_are_more_faithful_and_a_draw_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = load_digits(return_X_y=True)
    z = PCA(10, random_state=0).fit_transform(x)
    two = neighbourhood_trust(x, z[:, :2])
    ten = neighbourhood_trust(torch.from_numpy(x), torch.from_numpy(z))
    assert 0.7 < two < ten < 1
    monkeypatch.setattr("sae.book.measures.embedding.SAMPLE", 900)
    drawn = neighbourhood_trust(x, z[:, :2])
    assert drawn != two
    assert drawn == pytest.approx(two, abs=0.03)
    assert neighbourhood_trust(x, z[:, :2]) == drawn


def test_separate_blobs_are_found_whatever_their_names() -> None:
    truth = np.repeat(["a", "b", "c"], 40)
    result = clusters(points(120, 4) + 30 * np.eye(4)[np.repeat([0, 1, 2], 40)], truth)
    assert (result.nmi, result.ari) == pytest.approx((1, 1))


def test_splitting_every_class_in_two_has_the_closed_forms() -> None:
    """2 classes in 4 equal clusters of m: I = ln 2, mean entropy 1.5 ln 2; the ARI by its pair counts."""
    m = 25
    truth = np.repeat([0, 1], 2 * m)
    corners = 100 * np.array([[0, 0], [0, 1], [5, 0], [5, 1]])
    result = clusters(np.repeat(corners, m, axis=0) + points(4 * m, 2), truth, count=4)
    assert result.nmi == pytest.approx(2 / 3)
    pairs = {size: size * (size - 1) / 2 for size in (m, 2 * m, 4 * m)}
    both, by_class, by_cluster = 4 * pairs[m], 2 * pairs[2 * m], 4 * pairs[m]
    expected = by_class * by_cluster / pairs[4 * m]
    assert result.ari == pytest.approx((both - expected) / ((by_class + by_cluster) / 2 - expected))


def test_labels_that_say_nothing_agree_by_chance_alone() -> None:
    draw = np.random.default_rng(0)
    result = clusters(points(2000, 3), draw.integers(0, 5, 2000))
    assert result.nmi == pytest.approx(0, abs=0.01)
    assert result.ari == pytest.approx(0, abs=0.01)


def test_sparse_codes_cluster_as_their_dense_form_does_and_again_alike() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 200)
    indices = np.stack([truth * 2, truth * 2 + 1, 6 + draw.integers(0, 400, 200)], axis=1)
    codes = SparseCodes(torch.from_numpy(1 + draw.random((200, 3))), torch.from_numpy(indices), 500)
    result = clusters(codes, truth)
    assert result.nmi == pytest.approx(1)
    again = clusters(codes.to_dense() + 1, truth)
    assert (again.nmi, again.ari) == pytest.approx((result.nmi, result.ari))
    assert clusters(codes, truth) == result


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: neighbourhood_trust(points(9, 2), points(8, 2)),
            "embedded: expected one for each of the 9 inputs, got 8",
        ),
        (lambda: neighbourhood_trust(points(24, 2), points(24, 2)), "inputs: expected more than 24 points, got 24"),
        (lambda: clusters(points(5, 2), [0, 1]), "classes: expected one for each of the 5 rows"),
        (lambda: clusters(points(5, 2), range(5), count=6), "count 6: expected 1 to the 5 samples"),
        (lambda: clusters(points(5, 2) * np.nan, range(5)), "codes: 10 of 10 values are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
