"""The table of controls of an evaluation: every number of the autoencoder for each control, and the paired difference.

rows = control_rows(reconstruction, losses, k=32, resamples=1000, seed=0)
rows[1]["fvu"].value, rows[1]["difference"]["fvu"].high, sentences(rows)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sae.evaluation import downstream
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.controls import MEAN
from sae.evaluation.reconstruction import Reconstruction, fvu_of

COLUMNS = {
    "fvu": "FVU",
    "l0": "L0",
    "cosine": "cosine",
    "downstream.delta_ce": "delta CE",
    "downstream.kl": "KL",
    "downstream.ce_recovered_zero": "recovered",
}
"""Number of a control -> its heading in the table for people."""
BETTER = {"fvu": (-1, "FVU"), "cosine": (1, "cosine"), "downstream.delta_ce": (-1, "delta CE")}
"""Number -> sign of the better direction, and its name in sentences."""


def components_of(reconstruction: Reconstruction, k: int) -> list[int]:
    """Components of PCA as a control: k, and as many as make the autoencoder's FVU; none without PCA."""
    if reconstruction.pca is None:
        return []
    most = len(reconstruction.pca.mean)
    return [m for m in dict.fromkeys((min(k, most), reconstruction.components_for_same_fvu())) if m]


def control_rows(
    reconstruction: Reconstruction, losses: GroupSums | None, *, k: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """A row for every control, of intervals.

    Args:
        reconstruction: with controls.
        losses: of `Downstream`, with the controls spliced in; None where there are no losses.
        k: components of PCA.

    Returns:
        Each row's "control" is its name, "difference" its numbers less the autoencoder's on the same tokens.
    """
    rows = []
    for name, sums in reconstruction.control_sums(components_of(reconstruction, k)).items():
        row = _reconstructed(reconstruction.sums, sums, resamples=resamples, seed=seed)
        if losses is not None and (spliced := control_losses(losses, name)) is not None:
            row["downstream"] = downstream.recovery(losses, **spliced, resamples=resamples, seed=seed)
            row["difference"]["delta_ce"] = losses.interval(
                lambda s, of=spliced["spliced"]: (s[of] - s["spliced"]) / s["count"], resamples=resamples, seed=seed
            )
        rows.append({"control": name, **row})
    return rows


def control_losses(losses: GroupSums, name: str) -> dict[str, str] | None:
    """The names of a control's sums of cross-entropies and divergences; None where it was not spliced in."""
    names = {"spliced": "mean", "kl": "kl.mean"} if name == MEAN else {"spliced": name, "kl": f"kl.{name}"}
    return names if names["kl"] in losses.sums else None


def _reconstructed(sums: GroupSums, of: Mapping[str, Tensor], *, resamples: int, seed: int) -> dict[str, Any]:
    also = {f"control.{name}": values for name, values in of.items()}

    def interval(metric: Any) -> Interval | None:
        return sums.interval(metric, also, resamples=resamples, seed=seed)

    return {
        "fvu": interval(lambda s: fvu_of("control.error", s)),
        "l0": interval(ratio("control.l0", "count")),
        "cosine": interval(ratio("control.cosine", "count")),
        "reconstruction_bias": interval(ratio("control.hat_square", "control.dot")),
        "relative_error": interval(ratio("control.error", "norm_square")),
        "difference": {
            "fvu": interval(lambda s: fvu_of("control.error", s) - fvu_of("error", s)),
            "cosine": interval(lambda s: (s["control.cosine"] - s["cosine"]) / s["count"]),
        },
    }


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each number in which a control is as good as the autoencoder, from the rows of an eval.json."""
    said = []
    for row in rows:
        for key, (sign, word) in BETTER.items():
            number = key.rpartition(".")[2]
            difference = row["difference"].get(number)
            if difference is None or difference["low"] is None:
                continue
            worst, best = sorted((sign * difference["low"], sign * difference["high"]))
            if worst > 0:
                said.append(f"{row['control']}: better than the autoencoder in {word}.")
            elif best >= 0:
                said.append(f"{row['control']}: not told apart from the autoencoder in {word}.")
    return said
