"""Anomaly scores against closed forms, counts over pairs, and examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sae.book.measures.anomaly import detect, detect_each, mean_over
from sae.config import ConfigError


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0, -1.0])
def test_auroc_of_two_gaussians(distance: float) -> None:
    """Φ(distance / √2) (Bamber 1975)."""
    anomalous = np.arange(40_000) % 2 == 0
    score = draws().standard_normal(40_000) + distance * anomalous
    assert detect(score, anomalous).auroc == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.01)


def test_auroc_is_the_share_of_pairs_in_order_with_ties_by_half() -> None:
    draw = draws()
    score, anomalous = draw.integers(0, 6, 80).astype(float), draw.random(80) < 0.3
    gaps = score[anomalous][:, None] - score[~anomalous][None]
    assert detect(score, anomalous).auroc == pytest.approx(((np.sign(gaps) + 1) / 2).mean())


def test_average_precision_by_hand() -> None:
    """Anomalies at ranks 1, 3 and 6 of 6: (1/1 + 2/3 + 3/6) / 3."""
    result = detect([9, 8, 7, 6, 5, 4], [True, False, True, False, False, True])
    assert result.average_precision == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert result.share == 0.5


def test_a_score_that_says_nothing_has_half_and_the_share() -> None:
    draw = draws()
    anomalous = draw.random(50_000) < 0.1
    result = detect(draw.random(50_000), anomalous)
    assert result.auroc == pytest.approx(0.5, abs=0.01)
    assert result.average_precision == pytest.approx(anomalous.mean(), abs=0.01)
    assert detect(np.ones(50_000), anomalous)[:2] == pytest.approx((0.5, anomalous.mean()))


def test_only_the_order_of_scores_counts_and_tensors_do_too() -> None:
    draw = draws()
    score, anomalous = draw.standard_normal(200), draw.random(200) < 0.4
    plain = detect(score, anomalous)
    assert detect(np.exp(3 * score) + 7, anomalous) == pytest.approx(plain)
    assert detect(torch.from_numpy(score).requires_grad_(), torch.from_numpy(anomalous)) == plain
    assert detect(-score, anomalous).auroc == pytest.approx(1 - plain.auroc)


def test_each_class_stands_against_the_normal_ones_alone() -> None:
    classes = np.repeat(["normal", "seen", "missed"], 50)
    score = np.concatenate([np.linspace(0, 1, 50), np.linspace(2, 3, 50), np.linspace(-2, -1, 50)])
    result = detect_each(score, classes, ["normal"])
    assert list(result) == ["missed", "seen"]
    assert result["seen"] == (1, 1, 0.5)
    assert result["missed"].auroc == 0
    assert mean_over(result.values()).auroc == 0.5
    assert result["missed"] == detect(score[classes != "seen"], (classes == "missed")[classes != "seen"])


def test_the_mean_over_classes_weighs_them_alike() -> None:
    one, two = detect([1, 2, 3], [0, 0, 1]), detect([3, 2, 1, 0], [0, 0, 1, 1])
    assert mean_over([one, two]) == pytest.approx(((1 + 0) / 2, (one[1] + two[1]) / 2, (1 / 3 + 1 / 2) / 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: detect([1.0, 2.0], [True, True]), "all 2 samples are anomalous"),
        (lambda: detect([1.0, 2.0], [False, False]), "all 2 samples are normal"),
        (lambda: detect([1.0, 2.0, 3.0], [7, 8, 7]), r"anomalous: expected bool, or 0 and 1, got \[7, 8\], int64"),
        (
            lambda: detect([1.0, 2.0], ["normal", "odd"]),
            r"anomalous: expected bool, or 0 and 1, got \['normal', 'odd'\]",
        ),
        (lambda: detect([1.0, 2.0], [0.2, 0.9]), r"anomalous: expected bool, or 0 and 1, got \[0.2, 0.9\], float64"),
        (lambda: detect([1.0, np.inf], [False, True]), "score: 1 of 2 values are not finite"),
        (lambda: detect([1.0, 2.0], [True]), "anomalous: expected one for each of the 2"),
        (lambda: detect_each([1.0, 2.0], [0, 1], [5]), r"normal \[5\]: expected some of the classes \[0, 1\]"),
        (lambda: detect_each([1.0, 2.0], [0, 1], [0, 1]), "not all"),
    ],
)
def test_what_cannot_be_judged_is_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
