"""How well a score tells anomalies from normal samples.

detect(nll, is_anomalous).auroc
detect_each(nll, digit, normal=[1])[7].average_precision            # one detector, by class of anomaly
mean_over([detect(nll[c], digit != c) for c in range(10)])          # one detector a class
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from sae.config import ConfigError
from sae.evaluation.arrays import labels, table


class Detected(NamedTuple):
    """How well one score detects anomalies."""

    auroc: float
    """Chance that an anomaly scores higher than a normal sample, ties by half; .5 is chance, and below it the score is
    the wrong way round."""
    average_precision: float
    """Precision averaged over the recall steps; `share` is chance."""
    share: float
    """Share of anomalies among the samples."""


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


def detect_each(score: Any, classes: Any, normal: Collection[Any]) -> dict[Any, Detected]:
    """One detector against every anomalous class in turn, each beside all normal samples: results by class.

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
    rows = {other: usual | (given == other) for other in np.unique(given[~usual]).tolist()}
    return {other: detect(values[some], ~usual[some]) for other, some in rows.items()}


def mean_over(results: Iterable[Detected]) -> Detected:
    """Unweighted mean of results, of at least one class."""
    return Detected(*np.mean(list(results), axis=0).tolist())
