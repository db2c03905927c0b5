"""How well a score tells anomalies from normal samples.

detect(nll, is_anomalous).auroc
detect_each(nll, digit, normal=[1]).mean.average_precision    # one detector, by class of anomaly
over_classes({c: detect(nll[c], digit != c) for c in range(10)})    # a detector for every class
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from sae.config import ConfigError
from sae.evaluation.arrays import labels, table


class Detected(NamedTuple):
    """How one score does."""

    auroc: float
    """Chance that an anomaly scores higher than a normal sample, ties by half; .5 says nothing, below it the score is
    the wrong way round."""
    average_precision: float
    """Precision averaged over the recall steps; a score that says nothing has `share`."""
    share: float
    """Share of anomalies among the samples."""


class PerClass(NamedTuple):
    """`Detected` by class, and its mean."""

    each: dict[Any, Detected]
    mean: Detected
    """Unweighted mean over the classes."""


def detect(score: Any, anomalous: Any) -> Detected:
    """AUROC (Mann and Whitney 1947) and average precision of a score that is high for anomalies.

    Args:
        score: [n], such as a sample's negative log-likelihood in nats or its reconstruction error.
        anomalous: [n], bool or 0 and 1, with at least one of each.

    Raises:
        ConfigError: shapes that do not fit, scores that are not finite, other labels, or only one kind of sample.
    """
    values = table(score, "score", ndim=1)
    given = labels(anomalous, len(values), "anomalous")
    if given.dtype.kind not in "biuf" or not np.isin(given, (0, 1)).all():
        raise ConfigError(f"anomalous: expected bool, or 0 and 1, got {sorted(set(given.tolist()))[:5]}, {given.dtype}")
    truth = given.astype(bool)
    if truth.all() or not truth.any():
        kind = "anomalous" if truth.any() else "normal"
        raise ConfigError(f"anomalous: all {len(truth)} samples are {kind}; both kinds are needed")
    return Detected(
        auroc=float(roc_auc_score(truth, values)),
        average_precision=float(average_precision_score(truth, values)),
        share=float(truth.mean()),
    )


def detect_each(score: Any, classes: Any, normal: Collection[Any]) -> PerClass:
    """One detector against every class that is not normal, one at a time, each beside all normal samples.

    Args:
        score: [n].
        classes: of the samples, [n].
        normal: classes that the detector was trained on.

    Raises:
        ConfigError: as `detect`; or no sample is normal, or all are.
    """
    values = table(score, "score", ndim=1)
    given = labels(classes, len(values), "classes")
    usual = np.isin(given, list(normal))
    if usual.all() or not usual.any():
        raise ConfigError(f"normal {sorted(normal)}: expected some of the classes {np.unique(given).tolist()}, not all")
    others = np.unique(given[~usual]).tolist()
    chosen = {other: usual | (given == other) for other in others}
    return over_classes({other: detect(values[rows], ~usual[rows]) for other, rows in chosen.items()})


def over_classes(each: Mapping[Any, Detected]) -> PerClass:
    """The mean over classes beside the classes' own results.

    Raises:
        ConfigError: no class.
    """
    if not each:
        raise ConfigError("each: expected the result of at least one class, got none")
    return PerClass(dict(each), Detected(*(float(mean) for mean in np.mean(list(each.values()), axis=0))))
