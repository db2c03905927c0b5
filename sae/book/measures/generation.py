"""How good generated samples are, in the features of one fixed encoder: distance, fidelity, variety, failed seeds.

    score = score_generator(real_features, generated_features, real_classes, generated_classes)
    score.frechet.distance, score.manifolds.precision, score.modes.hit, score.failure

All of these depend on the number of samples (a Fréchet distance falls with it), so generators are compared at equal
numbers, beside the same measure of held-out real samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import rel_entr

from sae.config import ConfigError
from sae.evaluation.arrays import labels, table, to_numpy

TENTH = 10  # a class counts as hit if it has one tenth of its share in real samples
CHUNK = 1024  # rows of distances at a time


class Frechet(NamedTuple):
    """Fréchet distance between Gaussians fitted to two sets of features, in the features' squared unit."""

    distance: float
    """||μ₁ - μ₂||² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), with the covariances' n - 1."""
    of_a_constant: float
    """tr Σ₁: the distance of a generator that always gives the real mean."""


class Manifolds(NamedTuple):
    """Shares of samples inside the other set's manifold, each in [0, 1]."""

    precision: float
    """Share of generated samples that lie among real ones: fidelity."""
    recall: float
    """Share of real samples that lie among generated ones: variety."""


class Modes(NamedTuple):
    """Which classes of the data a generator produces, by a classifier's names for its samples."""

    hit: int
    """Classes that make up at least a tenth of their share in real samples."""
    of: int
    """Classes of the real samples."""
    divergence: float
    """KL of the generated class distribution from the real one, in nats: 0 alike, ln C if only one of C even classes is
    generated."""


class GeneratorScore(NamedTuple):
    """All measures of one generator; None, but for the failure, if its samples are not finite."""

    frechet: Frechet | None
    manifolds: Manifolds | None
    modes: Modes | None
    failure: str
    """Why this seed counts as failed, empty if it does not."""


def frechet(real: Any, generated: Any) -> Frechet:
    """Fréchet distance (Heusel et al. 2017, arXiv:1706.08500; Dowson and Landau 1982).

    The trace of the root is the nuclear norm of R₁ R₂ᵀ, R the triangle of a QR decomposition of the centred features:
    no covariance is formed, and none needs full rank.

    Args:
        real: features [n, d], two rows or more.
        generated: features [m, d], two rows or more.

    Raises:
        ConfigError: shapes that do not fit, or values that are not finite.
    """
    x, y = _features(real, generated)
    if min(len(x), len(y)) < 2:
        raise ConfigError(f"real and generated: expected two samples or more of each, got {len(x)} and {len(y)}")
    first, second = _root(x), _root(y)
    means = float(((x.mean(0) - y.mean(0)) ** 2).sum())
    spread = float((first**2).sum())
    covariances = spread + float((second**2).sum()) - 2 * float(np.linalg.norm(first @ second.T, "nuc"))
    # only rounding makes it negative
    return Frechet(means + max(covariances, 0.0), spread)


def manifolds(real: Any, generated: Any, *, neighbours: int = 3) -> Manifolds:
    """Precision and recall of k-nearest-neighbour manifolds (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    A set's manifold is the union of balls around its samples, whose radii are the distances to the sample's k-th
    nearest neighbour in the set.

    Args:
        real: features [n, d].
        generated: features [m, d].
        neighbours: k, below both numbers of samples.

    Raises:
        ConfigError: shapes that do not fit, values that are not finite, or too few samples for the neighbours.
    """
    x, y = _features(real, generated)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ConfigError(f"neighbours {neighbours}: expected at least 1 and below {min(len(x), len(y))}, the samples")
    return Manifolds(precision=_inside(y, x, neighbours), recall=_inside(x, y, neighbours))


def modes(real_classes: Any, generated_classes: Any) -> Modes:
    """Classes that a generator hits, by a classifier of the data (Srivastava et al. 2017, arXiv:1705.07761).

    A class counts as hit if it has at least a tenth of its real share, so the classifier's errors are no hits.

    Args:
        real_classes: of the data, [n].
        generated_classes: what the classifier calls the generated samples, [m].

    Raises:
        ConfigError: no sample, or a generated class that the data do not have.
    """
    real, generated = (
        labels(given, len(given), name)
        for given, name in ((real_classes, "real_classes"), (generated_classes, "generated_classes"))
    )
    if not len(real) or not len(generated):
        raise ConfigError(f"classes: expected some of both, got {len(real)} real and {len(generated)} generated")
    classes, counts = np.unique(real, return_counts=True)
    if unknown := sorted(set(generated.tolist()) - set(classes.tolist())):
        raise ConfigError(f"generated_classes: {unknown} are none of the data's {classes.tolist()}")
    given = np.bincount(np.searchsorted(classes, generated), minlength=len(classes))
    return Modes(
        hit=int((TENTH * given * len(real) >= counts * len(generated)).sum()),
        of=len(classes),
        divergence=float(np.sum(rel_entr(given / len(generated), counts / len(real)))),
    )


def score_generator(real: Any, generated: Any, real_classes: Any, generated_classes: Any) -> GeneratorScore:
    """All measures, and whether the seed failed.

    A seed fails if a feature of its samples is not finite, if it hits fewer than half of the classes, or if its
    samples are no nearer to the data than one constant sample at the data's mean (`Frechet.of_a_constant`).

    Args:
        real: features [n, d].
        generated: features [m, d].
        real_classes: [n].
        generated_classes: what the classifier calls the generated samples, [m].

    Raises:
        ConfigError: shapes that do not fit, or real features that are not finite.
    """
    sample = to_numpy(generated)
    if bad := int((~np.isfinite(sample.reshape(len(sample), -1))).any(axis=1).sum()):
        return GeneratorScore(None, None, None, f"{bad} of {len(sample)} samples are not finite")
    distance, hits = frechet(real, generated), modes(real_classes, generated_classes)
    failure, limit = "", distance.of_a_constant
    if 2 * hits.hit < hits.of:
        failure = f"hits {hits.hit} of {hits.of} classes, fewer than half"
    elif distance.distance >= limit:
        failure = f"Fréchet distance {distance.distance:.4g}, not below a constant sample's {limit:.4g}"
    return GeneratorScore(distance, manifolds(real, generated), hits, failure)


def _features(real: Any, generated: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = table(real, "real"), table(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ConfigError(f"generated: expected features of width {x.shape[1]} as the real ones, got {y.shape[1]}")
    return x, y


def _root(x: np.ndarray) -> np.ndarray:
    """R with RᵀR the covariance of x [n, d]: [min(n, d), d]."""
    return np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1)


def _inside(points: np.ndarray, others: np.ndarray, neighbours: int) -> float:
    """Share of the points that lie in the manifold of the others."""
    radius = np.concatenate(
        # a row's smallest distance is the one of a sample to itself
        [np.partition(cdist(rows, others), neighbours, axis=1)[:, neighbours] for rows in _chunks(others)]
    )
    hits = sum(int((cdist(rows, others) <= radius).any(axis=1).sum()) for rows in _chunks(points))
    return hits / len(points)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
