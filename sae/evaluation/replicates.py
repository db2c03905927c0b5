"""The numbers of an evaluation on resampled documents, kept beside it: with them, runs are compared in pairs later.

    write_replicates(folder, weights, replicates_of(reconstruction.sums, losses, resamples=1000, seed=0))
    read_replicates(folder, weights)["fvu"].draws

Two runs that were evaluated on the same documents with the same seed have resamples of the same documents, so that the
difference of their draws is that of the pair. `Replicate.documents` tells whether they are the same.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sae.base.files import CorruptError, publish_file
from sae.evaluation.bootstrap import GroupSums, ratio
from sae.evaluation.reconstruction import fvu_of

FILE = "eval.resamples.npz"
FORMAT = 1

Metric = Callable[[Mapping[str, Tensor]], Tensor]
RECONSTRUCTION: dict[str, Metric] = {
    "fvu": lambda sums: fvu_of("error", sums),
    "l0": ratio("l0", "count"),
    "cosine": ratio("cosine", "count"),
}
LOSSES: dict[str, Metric] = {
    "downstream.delta_ce": lambda sums: (sums["spliced"] - sums["clean"]) / sums["count"],
    "downstream.kl": ratio("kl", "count"),
}
"""Key in eval.json -> the number as a function of sums."""


class Replicate(NamedTuple):
    """One number over resampled documents."""

    value: float
    """On all of them, as in eval.json."""
    draws: np.ndarray
    """On every resample, float64 [R]."""
    documents: str
    """SHA-256 of which documents there are and how many tokens each has; with the resamples' number and seed."""
    groups: int
    """Groups of documents that were resampled."""


def replicates_of(sums: GroupSums, losses: GroupSums | None, *, resamples: int, seed: int) -> dict[str, Replicate]:
    """Key in eval.json -> its replicate, for the numbers that have a value.

    Args:
        sums: of a `Reconstruction`.
        losses: of `Downstream`; None where there are none.
    """
    kept: dict[str, Replicate] = {}
    for metrics, of in ((RECONSTRUCTION, sums), (LOSSES, losses)):
        if of is None or of.groups < 2:
            continue
        documents = f"{of.fingerprint()} {resamples} {seed}"
        for name, metric in metrics.items():
            interval = of.interval(metric, resamples=resamples, seed=seed)
            if interval is not None:
                draws = of.draws(metric, resamples=resamples, seed=seed).numpy()
                kept[name] = Replicate(interval.value, draws, documents, of.groups)
    return kept


def write_replicates(folder: Path, weights: str, replicates: Mapping[str, Replicate]) -> None:
    """Write them into a run folder, in place of earlier ones; `weights` is the SHA-256 of the run's."""
    numbers = {name: {"documents": r.documents, "groups": r.groups, "value": r.value} for name, r in replicates.items()}
    about = json.dumps({"format": FORMAT, "weights": weights, "numbers": numbers})
    arrays: dict[str, Any] = {name: r.draws for name, r in replicates.items()}
    arrays["info"] = np.frombuffer(about.encode(), np.uint8)
    publish_file(folder / FILE, lambda stream: np.savez(stream, **arrays))


def read_replicates(folder: Path, weights: str) -> dict[str, Replicate]:
    """The replicates of a run with these weights; none where there are none, or they are of other weights.

    Raises:
        CorruptError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    remedy = "it can be deleted: sae eval writes it anew"
    try:
        with np.load(path, allow_pickle=False) as file:
            info: dict[str, Any] = json.loads(file["info"].tobytes())
            if info["format"] != FORMAT or info["weights"] != weights:
                return {}
            return {
                name: Replicate(float(of["value"]), file[name], str(of["documents"]), int(of["groups"]))
                for name, of in info["numbers"].items()
            }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptError(f"{path}: cannot be read ({error}); {remedy}") from error
