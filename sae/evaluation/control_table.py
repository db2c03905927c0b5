"""The table of controls of an evaluation: every number of the autoencoder for each control, and the paired difference.

rows = control_rows(reconstruction, losses, k=32, resamples=1000, seed=0)
rows[1]["fvu"].value, rows[1]["difference"]["fvu"].high
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sae.base.tables import number
from sae.evaluation import downstream
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.controls import MEAN, pca_name
from sae.evaluation.reconstruction import Reconstruction, fvu_of
from sae.evaluation.tables import NAME, added_tables, beside_controls
from sae.evaluation.words import value_at

LEFT_OUT = ("dead", "KL", "CE recovered (mean)")
"""Columns of `beside_controls` that the table in the terminal has no room for."""
PRINTED = ("tokens", "clean CE", "delta CE")
"""Columns of `added_tables` that it has room for, beside the class."""
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
        Each row's "control" is its name, "difference" its numbers less the autoencoder's on the same tokens, "training"
        what it was trained on, if it was.
    """
    budgets = {control.name: control.training for control in reconstruction.controls or ()}
    rows = []
    for name, sums in reconstruction.control_sums(components_of(reconstruction, k)).items():
        row = _reconstructed(reconstruction.sums, sums, resamples=resamples, seed=seed)
        if losses is not None and (spliced := control_losses(losses.sums, name)) is not None:
            row["downstream"] = downstream.recovery(losses, **spliced, resamples=resamples, seed=seed)
            row["difference"]["delta_ce"] = losses.interval(
                lambda s, of=spliced["spliced"]: (s[of] - s["spliced"]) / s["count"], resamples=resamples, seed=seed
            )
        if (budget := budgets.get(name)) is not None:
            row["training"] = budget
        rows.append({"control": name, **row})
    return rows


def control_losses(losses: Mapping[str, Tensor], name: str) -> dict[str, str] | None:
    """The names of a control's sums of cross-entropies and divergences; None where it was not spliced in."""
    names = {"spliced": "mean", "kl": "kl.mean"} if name == MEAN else {"spliced": name, "kl": f"kl.{name}"}
    return names if names["kl"] in losses else None


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


def sentences(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each number in which a control of an eval.json is as good as the autoencoder or better."""
    said = []
    same = (report.get("baselines") or {}).get("pca_components_for_same_fvu")
    for row in report.get("controls") or ():
        for key, (sign, word) in BETTER.items():
            difference = row["difference"].get(key.rpartition(".")[2])
            # PCA with as many components as make the same FVU has it by construction
            by_construction = key == "fvu" and same is not None and row["control"] == pca_name(same)
            measured = value_at(dict(report), key) is not None
            if difference is None or difference["low"] is None or by_construction or not measured:
                continue
            worst, best = sorted((sign * difference["low"], sign * difference["high"]))
            if best >= 0:
                theirs, ours = (number(value_at(dict(of), key)["value"]) for of in (row, report))
                verdict = "better than" if worst > 0 else "not told apart from"
                said.append(f"{row['control']}: {word} {theirs}, {verdict} the autoencoder's {ours}")
    return said


def readable(report: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as it is printed: its controls as a table under the autoencoder's own numbers, with `sentences`.

    The comparison of a sweep's members is a table already.
    """
    shown = dict(report)
    shown.pop("added_by_class", None)
    if "table" in shown or not shown.pop("controls", None):
        return shown
    return {
        **shown,
        **{
            f"delta CE by {table.partition}": [
                {name: _cell(value) for name, value in row.items() if name in (table.title, *PRINTED)}
                for row in table.rows
            ]
            for table in added_tables(report)
        },
        "controls": [
            {"" if name == NAME else name: _cell(value) for name, value in row.items() if name not in LEFT_OUT}
            for row in beside_controls(report)
        ],
        "beside its controls": sentences(report) or "no control is as good",
    }


def _cell(value: Any) -> str:
    """A number with half the width of its interval, short enough for a row of five."""
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return number(value)
    if value["low"] is None:
        return number(value["value"])
    half = (value["high"] - value["low"]) / 2
    middle = f"{value['value']:.3g}"
    return _short(middle if half <= 1e-4 * abs(value["value"]) else f"{middle} ±{half:.1g}")


def _short(numbers: str) -> str:
    """Without the zeros in front of points."""
    return re.sub(r"(?<![0-9])0\.", ".", numbers)
