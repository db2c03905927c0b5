"""The numbers of an evaluation on resampled documents, kept beside it: with them, runs are compared in pairs later.

    write_kept(folder, weights, kept_of(reconstruction, losses, k=32, settings={}, resamples=1000, seed=0))
    read_kept(folder, weights).numbers["fvu"].draws

Two runs that were evaluated on the same documents with the same seed have resamples of the same documents, so that the
difference of their draws is that of the pair. `Replicate.documents` tells whether they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sae.base.npz import read_arrays, write_arrays
from sae.base.reading import reading
from sae.evaluation.bootstrap import GroupSums, ratio
from sae.evaluation.control_table import components_of, control_losses
from sae.evaluation.reconstruction import Reconstruction, fvu_of

FILE = "eval.resamples.npz"
FORMAT = 2

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
    factor: float = 1.0
    """Variance over documents by the mean square deviation of the draws: 1 of a bootstrap; groups - 1 of a jackknife,
    whose draws leave out one group each."""


class Kept(NamedTuple):
    """What is kept of an evaluation."""

    numbers: dict[str, Replicate]
    """Key in eval.json -> its replicate; for controls `of_control` of their names and keys."""
    fired: np.ndarray
    """On how many tokens each latent fired, int64 [F]."""
    settings: dict[str, Any]
    """The evaluation's settings as JSON values."""


def of_control(name: str, key: str) -> str:
    """The key of a control's number."""
    return f"{name}: {key}"


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


def kept_of(
    reconstruction: Reconstruction,
    losses: GroupSums | None,
    *,
    k: int,
    settings: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> Kept:
    """What is kept of a run's evaluation on ordinary tokens; `k` is the number of PCA's components as a control."""
    numbers = replicates_of(reconstruction.sums, losses, resamples=resamples, seed=seed)
    if "fvu" in numbers:
        of_dead = {"draws": reconstruction.dead_without_groups().numpy(), "factor": reconstruction.sums.groups - 1.0}
        numbers["dead"] = numbers["fvu"]._replace(value=reconstruction.dead().value, **of_dead)
    controls = {}
    if reconstruction.controls is not None:
        controls = reconstruction.control_sums(components_of(reconstruction, k))
    for name, of in controls.items():
        row = control_draws(reconstruction, losses, name, of, resamples=resamples, seed=seed)
        for key, (value, draws) in row.items():
            if key in numbers:
                numbers[of_control(name, key)] = numbers[key]._replace(value=value, draws=draws)
    return Kept(numbers, reconstruction.fired.numpy(), dict(settings))


def control_draws(
    reconstruction: Reconstruction,
    losses: GroupSums | None,
    name: str,
    of: Mapping[str, Tensor],
    *,
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, np.ndarray]]:
    """Key -> a control's number and its draws, on the same resamples as the autoencoder's own."""
    metrics: dict[str, tuple[GroupSums, Metric, Mapping[str, Tensor]]] = {
        "fvu": (reconstruction.sums, lambda s: fvu_of("control.error", s), {"control.error": of["error"]}),
        "l0": (reconstruction.sums, ratio("control.l0", "count"), {"control.l0": of["l0"]}),
        "cosine": (reconstruction.sums, ratio("control.cosine", "count"), {"control.cosine": of["cosine"]}),
    }
    if losses is not None and (spliced := control_losses(losses.sums, name)) is not None:
        ce, kl = spliced["spliced"], spliced["kl"]
        metrics["downstream.delta_ce"] = (losses, lambda s: (s[ce] - s["clean"]) / s["count"], {})
        metrics["downstream.kl"] = (losses, ratio(kl, "count"), {})
    numbers = {}
    for key, (sums, metric, also) in metrics.items():
        interval = sums.interval(metric, also, resamples=resamples, seed=seed)
        if interval is not None and sums.groups > 1:
            draws = sums.draws(metric, also, resamples=resamples, seed=seed).numpy()
            numbers[key] = (interval.value, draws)
    return numbers


def write_kept(folder: Path, weights: str, kept: Kept) -> None:
    """Write it into a run folder, in place of an earlier one; `weights` is the SHA-256 of the run's."""
    fields = ("documents", "groups", "value", "factor")
    numbers = [{"key": key, **{name: getattr(r, name) for name in fields}} for key, r in kept.numbers.items()]
    record = {"format": FORMAT, "weights": weights, "numbers": numbers, "settings": kept.settings}
    draws = {f"draws{place}": r.draws for place, r in enumerate(kept.numbers.values())}
    write_arrays(folder / FILE, record, {**draws, "fired": kept.fired})


def read_kept(folder: Path, weights: str) -> Kept | None:
    """What is kept of the newest evaluation of a run with these weights; None where there is none of these weights.

    Raises:
        CorruptError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    remedy = "it can be deleted: sae eval writes it anew"
    record, arrays = read_arrays(path, remedy)
    with reading(path, remedy=remedy):
        if record["format"] != FORMAT or record["weights"] != weights:
            return None
        numbers = {
            str(of["key"]): Replicate(
                float(of["value"]),
                arrays[f"draws{place}"],
                str(of["documents"]),
                int(of["groups"]),
                float(of["factor"]),
            )
            for place, of in enumerate(record["numbers"])
        }
        return Kept(numbers, arrays["fired"], dict(record["settings"]))
