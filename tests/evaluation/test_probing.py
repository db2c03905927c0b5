"""Probes of frozen codes against closed forms, brute force and planted latents; sparse and dense codes alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import norm
from sklearn.datasets import load_digits

from sae.config import ConfigError
from sae.evaluation.probing import (
    TOTAL_VARIANCE,
    ProbingTask,
    few_label_probe,
    full_probe,
    nearest_probe,
    probing_task,
    shuffled_probe,
    sparse_probe,
)
from sae_kernels import SparseCodes


def gaussians(distance: float, n: int = 4000, dim: int = 3, seed: int = 0) -> tuple:
    """Two classes, N(0, I) and N(distance * e_0, I): training codes and labels, test codes and labels."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, 2 * n)
    x = draw.standard_normal((2 * n, dim))
    x[:, 0] += distance * y
    return x[:n], y[:n], x[n:], y[n:]


def firing(n: int = 600, width: int = 300, seed: int = 0) -> tuple[SparseCodes, np.ndarray]:
    """Codes with 8 of `width` latents a sample; which of the first 30 fire depends on the class, of three."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    rows = [draw.permutation(width - 30)[:6] + 30 for _ in range(n)]
    indices = np.stack([[*(10 * c + draw.permutation(10)[:2]), *row] for c, row in zip(y, rows, strict=True)])
    values = 1 + draw.exponential(size=indices.shape)
    return SparseCodes(torch.from_numpy(values), torch.from_numpy(indices), width), y


@pytest.fixture(scope="module")
def digits() -> ProbingTask:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:1400], order[1400:]
    return probing_task(x[train], y[train], x[test], y[test])


@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_linear_probe_of_two_gaussians_has_the_accuracy_of_the_best_rule(distance: float) -> None:
    """Φ(distance/2): the error of halving the line between two unit Gaussians."""
    task = probing_task(*gaussians(distance))
    assert full_probe(task) == pytest.approx(norm.cdf(distance / 2), abs=3 * 0.5 / np.sqrt(4000))


def test_codes_are_scaled_as_a_whole_to_one_total_variance() -> None:
    x, y, x_test, y_test = gaussians(1.0, dim=4)
    x[:, 3] *= 1e-3  # a collapsed latent stays small
    task = probing_task(x, y, x_test, y_test)
    assert ((task.train - task.train.mean(0)) ** 2).sum(1).mean() == pytest.approx(TOTAL_VARIANCE)
    assert task.train[:, 3].std() / task.train[:, 1].std() == pytest.approx(1e-3, rel=0.05)


def test_scale_offset_and_rotation_of_the_codes_change_no_probe_on_all_latents(digits: ProbingTask) -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0]
    names = [digits.classes[y] for y in (digits.train_labels, digits.test_labels)]
    other = probing_task(1e-3 * digits.train @ rotation + 5, names[0], 1e-3 * digits.test @ rotation + 5, names[1])
    assert full_probe(other) == pytest.approx(full_probe(digits), abs=0.003)
    assert nearest_probe(other) == pytest.approx(nearest_probe(digits), abs=0.003)


def test_noise_of_collapsed_latents_does_not_spoil_the_others(digits: ProbingTask) -> None:
    noise = 1e-3 * np.random.default_rng(0).standard_normal((len(digits.train) + len(digits.test), 200))
    train, test = (
        np.concatenate([codes, more], axis=1)
        for codes, more in ((digits.train, noise[: len(digits.train)]), (digits.test, noise[len(digits.train) :]))
    )
    other = probing_task(train, digits.train_labels, test, digits.test_labels)
    assert nearest_probe(other) == pytest.approx(nearest_probe(digits), abs=0.005)
    assert full_probe(other) == pytest.approx(full_probe(digits), abs=0.005)


def test_all_ways_to_give_sparse_codes_stay_sparse_and_score_as_dense_ones() -> None:
    codes, y = firing()
    test_codes, y_test = firing(seed=1)
    crow = torch.arange(0, codes.values.numel() + 1, codes.values.shape[1])
    csr = SparseCodes(codes.values.flatten(), codes.indices.flatten(), codes.width, crow)
    dense, dense_test = codes.to_dense(), test_codes.to_dense()
    ways = {
        "codes": (codes, test_codes),
        "csr codes": (csr, test_codes),
        "torch": (dense.to_sparse(), dense_test),
        "scipy": (sparse.coo_matrix(dense.numpy()), dense_test.numpy()),
        "dense, mostly zeros": (dense, dense_test),
    }
    results = {}
    for way, (train, test) in ways.items():
        task = probing_task(train, y, test, y_test)
        assert sparse.issparse(task.train), way
        few, one = few_label_probe(task, 9), sparse_probe(task, 1)
        results[way] = (full_probe(task), nearest_probe(task), few, one, sparse_probe(task, 5))
    assert all(result == results["codes"] for result in results.values())
    # adding a constant to every code makes them dense and leaves every distance and every linear rule
    shifted = probing_task(dense + 1, y, dense_test + 1, y_test)
    full, nearest, _, *few_latents = results["codes"]
    assert full_probe(shifted) == pytest.approx(full, abs=0.005)
    assert nearest_probe(shifted) == pytest.approx(nearest, abs=0.005)
    assert [sparse_probe(shifted, 1), sparse_probe(shifted, 5)] == few_latents


def test_a_dictionary_of_sixteen_thousand_latents_is_never_made_dense() -> None:
    codes, y = firing(n=300, width=16_384)
    task = probing_task(codes, y, *firing(n=100, width=16_384, seed=1))
    assert task.train.nnz == 8 * 300
    assert full_probe(task) > 0.8
    assert sparse_probe(task, 16) > 0.8


def test_nearest_probe_is_the_majority_of_the_nearest_by_brute_force() -> None:
    x, y, x_test, y_test = gaussians(1.0, n=150)
    distance = ((x_test[:, None] - x[None]) ** 2).sum(-1)
    nearest = y[np.argsort(distance, axis=1)[:, :5]]
    wanted = ((nearest.mean(1) > 0.5) == y_test).mean()
    assert nearest_probe(probing_task(x, y, x_test, y_test)) == pytest.approx(wanted)


def test_few_labels_are_drawn_in_balance_again_and_again_and_by_the_seed_alone(digits: ProbingTask) -> None:
    few = few_label_probe(digits, 10)
    assert few_label_probe(digits, 10) == few
    assert few_label_probe(digits, 10, seed=1) != few
    # with one example a class a probe can already name them all: far over the 0.1 of chance
    assert 0.3 < few < few_label_probe(digits, 100) < full_probe(digits)


def test_few_labels_of_rare_classes_hold_one_of_each_and_all_labels_are_the_full_probe() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat(["rare", "common"], [3, 297])
    x = draw.standard_normal((300, 2)) + 20.0 * (y == "rare")[:, None]
    task = probing_task(x, y, x, y)
    assert few_label_probe(task, 2) == 1
    assert few_label_probe(task, 300) == pytest.approx(full_probe(task))


@pytest.mark.parametrize(("inside", "outside"), [(1.0, 0.0), (0.9, 0.3), (0.2, 0.6)])
def test_a_probe_on_one_latent_has_the_accuracy_of_its_firing_rates(inside: float, outside: float) -> None:
    """A latent that fires with probability p in the class and q elsewhere: (1 + |p - q|)/2."""
    draw = np.random.default_rng(0)
    n = 20_000
    y = draw.random(2 * n) < 0.2
    codes = np.zeros((2 * n, 40))
    codes[:, 1:] = draw.random((2 * n, 39)) < 0.5
    codes[:, 7] = draw.random(2 * n) < np.where(y, inside, outside)
    result = sparse_probe(probing_task(codes[:n], y[:n], codes[n:], y[n:]), 1)
    assert result == pytest.approx((1 + abs(inside - outside)) / 2, abs=0.01)


def test_more_latents_find_what_is_spread_over_them() -> None:
    codes, y = firing(n=3000)
    task = probing_task(codes, y, *firing(n=3000, seed=1))
    # two of a class's ten latents fire: one latent finds a fifth of the class, ten find it all
    assert sparse_probe(task, 1) == pytest.approx((1 + 0.2) / 2, abs=0.03)
    assert sparse_probe(task, 5) == pytest.approx((1 + 1 - 5 * 4 / 90) / 2, abs=0.03)
    assert sparse_probe(task, 10) == pytest.approx(1, abs=0.001)


def test_a_latent_that_always_fires_is_not_chosen_however_large() -> None:
    (codes, y), (test_codes, y_test) = firing(n=3000), firing(n=3000, seed=1)
    train, test = codes.to_dense(), test_codes.to_dense()
    train[:, -1], test[:, -1] = 50, 50
    task = probing_task(train, y, test, y_test)
    assert sparse.issparse(task.train)
    assert sparse_probe(task, 1) == pytest.approx((1 + 0.2) / 2, abs=0.03)


def test_shuffled_labels_leave_chance_and_the_full_probe_does_not(digits: ProbingTask) -> None:
    assert shuffled_probe(digits) < 0.2
    assert full_probe(digits) > 0.93
    assert nearest_probe(digits) > 0.95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y[:-1], x, y), "train_labels: expected one for each of the 6 rows"),
        (lambda x, y: (x, y, x[:, :2], y), "test: expected codes of 3 latents as in train, got 2"),
        (lambda x, y: (x, y, x, y + 1), r"test_labels: \[2\] are not among train_labels"),
        (lambda x, y: (x, y * 0, x, y * 0), r"train_labels: expected two classes or more, got only \[0\]"),
        (lambda x, y: (x * 0 + 3, y, x, y), "train: all samples have the same codes"),
        (lambda x, y: (x * 0, y, x, y), "train: all samples have the same codes"),
        (lambda x, y: (x / (x > 0), y, x, y), "train: .* not finite"),
        (lambda x, y: (sparse.csr_matrix(np.diag([np.inf] * 6)), y, np.eye(6), y), "train: 6 of 6 values"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
def test_tasks_that_cannot_be_probed_are_refused(change, words: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3))
    with pytest.raises(ConfigError, match=words):
        probing_task(*change(x, np.array([0, 1, 0, 1, 0, 1])))


def test_numbers_that_a_task_does_not_have_are_refused_with_the_range(digits: ProbingTask) -> None:
    with pytest.raises(ConfigError, match=r"count 9: expected at least one .* 10 classes, at most 1400"):
        few_label_probe(digits, 9)
    with pytest.raises(ConfigError, match="latents 65: expected 1 to the 64"):
        sparse_probe(digits, 65)
    few = probing_task(np.eye(4), [0, 1, 0, 1], np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ConfigError, match="train: expected at least 5 samples, got 4"):
        nearest_probe(few)
