"""Classifiers on frozen codes: linear probes, with few labels, from few latents, and by nearest neighbours.

    task = probing_task(train_codes, train_labels, test_codes, test_labels)
    full_probe(task), few_label_probe(task, 100), sparse_probe(task, 5), shuffled_probe(task)

Codes are multiplied by one number, so that their total variance is `TOTAL_VARIANCE`, and a penalty has the same effect
for every variant and width. Latents are not standardised one by one: that would enlarge a latent that fired once, or
the noise of a collapsed one, to the size of all others. On 4,000 MNIST digits and TopK codes of 2,000 latents it
takes five neighbours from .84 to .52, on 10 principal components beside 54 collapsed dimensions from .90 to .49.

Codes with few non-zero values stay sparse matrices throughout, so a wide dictionary costs what its L0 costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sae.config import ConfigError
from sae.evaluation.arrays import Matrix, labels, matrix

# on raw pixels, PCA, random features and TopK codes of MNIST, within .008 of the best of 1, 10, 100 and 1000
TOTAL_VARIANCE = 10.0
ITERATIONS = 2000
NEIGHBOURS = 5
DRAWS = 5  # of labels


class ProbingTask(NamedTuple):
    """Scaled codes of training and held-out samples with their classes, made by `probing_task`."""

    train: Matrix
    """Codes [n, F], float64, with a total variance of `TOTAL_VARIANCE`; dense ones centred as well."""
    train_labels: np.ndarray
    """Classes 0..C-1, int64 [n]."""
    test: Matrix
    """Codes [m, F], shifted and scaled like the training codes."""
    test_labels: np.ndarray
    """int64 [m]."""
    classes: np.ndarray
    """The given labels, ascending, [C]."""


def probing_task(train: Any, train_labels: Any, test: Any, test_labels: Any) -> ProbingTask:
    """Check and scale codes.

    Args:
        train: codes [n, F]: SparseCodes, a scipy sparse matrix, a tensor or an array.
        train_labels: classes of any type, [n], at least two different.
        test: codes [m, F].
        test_labels: classes [m], each of which is among the training labels.

    Raises:
        ConfigError: shapes that do not fit, values that are not finite, unknown or too few classes, or codes that are
            the same for all training samples.
    """
    x, x_test = matrix(train, "train"), matrix(test, "test")
    if x.shape[1] != x_test.shape[1]:
        raise ConfigError(f"test: expected codes of {x.shape[1]} latents as in train, got {x_test.shape[1]}")
    classes, y = np.unique(labels(train_labels, x.shape[0], "train_labels"), return_inverse=True)
    given = labels(test_labels, x_test.shape[0], "test_labels")
    if unknown := sorted(set(given.tolist()) - set(classes.tolist())):
        raise ConfigError(f"test_labels: {unknown} are not among train_labels; give examples of them or leave them out")
    if len(classes) < 2:
        raise ConfigError(f"train_labels: expected two classes or more, got only {classes.tolist()}")
    if sparse.issparse(x) != sparse.issparse(x_test):
        x, x_test = sparse.csr_matrix(x), sparse.csr_matrix(x_test)
    power, mean = _mean_square(x), np.asarray(x.mean(0)).ravel()
    if sparse.issparse(x):
        variance = power - (mean**2).sum()
    else:
        x, x_test = x - mean, x_test - mean  # for conditioning alone: the intercept is not penalised
        variance = _mean_square(x)
    # a variance of zero is not exactly zero after rounding
    if variance <= 1e-12 * power:
        raise ConfigError("train: all samples have the same codes, so there is nothing to probe")
    scale = np.sqrt(TOTAL_VARIANCE / variance)
    return ProbingTask(x * scale, y, x_test * scale, np.searchsorted(classes, given), classes)


def full_probe(task: ProbingTask) -> float:
    """Held-out accuracy of multinomial logistic regression, L2 penalty with C = 1, on all latents."""
    return _logistic(task, np.arange(len(task.train_labels)), task.train_labels)


def nearest_probe(task: ProbingTask) -> float:
    """Held-out accuracy of the majority among the 5 nearest training samples (Cover and Hart 1967)."""
    if len(task.train_labels) < NEIGHBOURS:
        raise ConfigError(f"train: expected at least {NEIGHBOURS} samples, got {len(task.train_labels)}")
    nearest = KNeighborsClassifier(NEIGHBOURS).fit(task.train, task.train_labels)
    return float(nearest.score(task.test, task.test_labels))


def few_label_probe(task: ProbingTask, count: int, *, seed: int = 0) -> float:
    """Held-out accuracy of logistic regression from `count` training samples, mean of 5 draws balanced over classes.

    Within a draw, smaller sets are part of larger ones.
    """
    n = len(task.train_labels)
    if not len(task.classes) <= count <= n:
        raise ConfigError(
            f"count {count}: expected at least one label for each of {len(task.classes)} classes, at most {n}"
        )
    values = []
    for draw in range(DRAWS):
        rows = _balanced_order(task.train_labels, np.random.default_rng([seed, draw]))[:count]
        values.append(_logistic(task, rows, task.train_labels[rows]))
    return float(np.mean(values))


def sparse_probe(task: ProbingTask, latents: int) -> float:
    """For each class, logistic regression on the latents whose mean differs most between class and rest.

    Returns balanced accuracy of the class against the rest, mean over classes; .5 is chance.

    Latents are selected on training samples (Gurnee et al. 2023, arXiv:2305.01610), then standardised; class and rest
    have the same weight.

    Args:
        task: from `probing_task`.
        latents: how many, 1 to F.
    """
    if not 1 <= latents <= task.train.shape[1]:
        raise ConfigError(f"latents {latents}: expected 1 to the {task.train.shape[1]} that the codes have")
    difference = np.abs(_class_mean_differences(task))
    scores = []
    for label in np.unique(task.test_labels):
        # a stable sort, so that ties go to the lower index
        selected = np.argsort(-difference[label], kind="stable")[:latents]
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=ITERATIONS))
        model.fit(_columns(task.train, selected), task.train_labels == label)
        heldout, truth = _columns(task.test, selected), task.test_labels == label
        if truth.all():
            raise ConfigError(
                f"test_labels: all are {task.classes[label]!r}; a probe needs samples of another class too"
            )
        scores.append(balanced_accuracy_score(truth, model.predict(heldout)))
    return float(np.mean(scores))


def shuffled_probe(task: ProbingTask, *, seed: int = 0) -> float:
    """A control: `full_probe` with shuffled training labels, mean of 5 draws."""
    rows = np.arange(len(task.train_labels))
    shuffled = (np.random.default_rng([seed, draw]).permutation(task.train_labels) for draw in range(DRAWS))
    return float(np.mean([_logistic(task, rows, y) for y in shuffled]))


def _mean_square(x: Matrix) -> float:
    """Mean over samples of ||x||²."""
    return float((x.data**2).sum() if sparse.issparse(x) else (x**2).sum()) / x.shape[0]


def _logistic(task: ProbingTask, rows: np.ndarray, y: np.ndarray) -> float:
    model = LogisticRegression(max_iter=ITERATIONS).fit(task.train[rows], y)
    return float(model.score(task.test, task.test_labels))


def _balanced_order(y: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """All rows: one of each class in random order, then a second of each, and so on."""
    order = draw.permutation(len(y))
    rank = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = order[y[order] == label]
        rank[rows] = np.arange(len(rows))
    return order[np.argsort(rank[order], kind="stable")]


def _class_mean_differences(task: ProbingTask) -> np.ndarray:
    """Mean over a class's samples minus mean over all others, [C, F]."""
    member = np.eye(len(task.classes))[task.train_labels]
    count = member.sum(0)[:, None]
    inside = np.asarray(task.train.T @ member).T
    return inside / count - (inside.sum(0) - inside) / (len(member) - count)


def _columns(x: Matrix, selected: np.ndarray) -> np.ndarray:
    picked = x[:, selected]
    return picked.toarray() if sparse.issparse(picked) else picked
