"""Sparse probing: how well k latents tell a class from the rest, beside k of what stands next to them.

For a class, the k latents are those with the largest |mean in class - mean in rest| over the training texts (Gurnee et
al. 2023, arXiv:2305.01610; SAEBench's choice). Logistic regression on them is tested on other texts. A text's numbers
are means over its tokens. With more than two classes, a task's number is the mean over its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sae.evaluation.semantic.bases import Basis, best
from sae.evaluation.semantic.intervals import Metric, Resamples, auroc, balanced_accuracy, compared, mean_of
from sae.evaluation.semantic.probes import fit_probe
from sae.evaluation.semantic.results import Row

FULL = "full probe"
"""The control that reads all raw channels."""


class Labelled(NamedTuple):
    """One task's texts as a measure reads them; n texts."""

    task: str
    labels: np.ndarray
    """str [n]."""
    training: np.ndarray
    """Whether probes are fitted on a text; the others test them, bool [n]."""
    activations: np.ndarray
    """Mean target activations, float32 [n, d_out]."""
    codes: Mapping[str, np.ndarray]
    """Basis's name -> mean z, float32 [n, F]."""
    other: np.ndarray | None = None
    """A second attribute, str [n]."""

    @property
    def classes(self) -> list[str]:
        """The classes that are told from the rest: one where there are two, as the other is its complement."""
        classes = sorted(set(self.labels.tolist()))
        return classes[:1] if len(classes) == 2 else classes


def probing_rows(
    data: Labelled, bases: Sequence[Basis], ks: Sequence[int], resamples: Resamples, seed: int
) -> list[Row]:
    """probing.accuracy (balanced) and probing.auroc of every basis at every k, and of the full probe."""
    truths = [data.labels == name for name in data.classes]
    testing = ~data.training
    full = [_heldout(data.activations, truth, data.training) for truth in truths]
    rows: list[Row] = []
    for k in ks:
        scores = {basis.name: [_sparse(data, basis, truth, k, seed) for truth in truths] for basis in bases}
        scores[FULL] = full
        for measure, metric in (("probing.accuracy", balanced_accuracy), ("probing.auroc", auroc)):

            def over_classes(of: list[np.ndarray], metric=metric) -> Metric:
                each = [
                    lambda weights, s=score, t=truth[testing]: metric(s, t, weights)
                    for score, truth in zip(of, truths, strict=True)
                ]
                return mean_of(each)

            metrics = {name: over_classes(of) for name, of in scores.items()}
            rows += compared(measure, data.task, k, metrics, resamples)
    return rows


def mean_difference(z: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean in class minus mean in rest, float64 [F], of numbers z [n, F]."""
    return z[truth].mean(0, dtype=np.float64) - z[~truth].mean(0, dtype=np.float64)


def _sparse(data: Labelled, basis: Basis, truth: np.ndarray, k: int, seed: int) -> np.ndarray:
    z = data.codes[basis.name]
    train = z[data.training]
    latents = best(np.abs(mean_difference(train, truth[data.training])), k, basis, (train != 0).any(0), seed)
    return _heldout(z[:, latents], truth, data.training)


def _heldout(x: np.ndarray, truth: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Scores of the held-out texts by a probe that was fitted on the others."""
    return fit_probe(x[training], truth[training]).scores(x[~training])
