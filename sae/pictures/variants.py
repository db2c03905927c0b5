"""The picture of `sae compare`: every variant's difference from the reference, number by number.

draw_differences(compare_runs(runs))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae.pictures.charts import GREY, SMALL, colour, quiet

PANELS = {"fvu": ("FVU", "less is better"), "delta_ce": ("delta CE, nats", "less is better"),
          "mcc": ("MCC of two seeds", "more is better")}  # fmt: skip
"""Number -> its name on the axis, and the better direction."""


def draw_differences(record: Mapping[str, Any]) -> Figure:
    """A panel for each number: differences with 95% intervals, and seed by seed; in grey what cannot be detected.

    A filled point is told apart from the reference (5%, all variants together), a hollow one is not. On the right the
    ranks that a variant may have.

    Args:
        record: what `compare_runs` returned.
    """
    rows = record["variants"]
    reference = next(row for row in rows if row["difference"] is None)
    names = [name for name in PANELS if all(name in row["numbers"] for row in rows)]
    figure = Figure(figsize=(1.3 + 3.1 * len(names), 0.42 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for name, axis in zip(names, axes, strict=True):
        label, better = PANELS[name]
        quiet(axis, x=f"{label}, less {reference['variant']}'s", title=better)
        axis.axvline(0, color=GREY, linewidth=1)
        for place, row in enumerate(rows):
            difference = (row["difference"] or {}).get(name)
            if difference is not None:
                _draw(axis, place, difference, _of_seeds(row, reference, name))
            best, worst = row["ranks"].get(name, (None, None))
            if best is not None:
                ranks = f"{best}" if best == worst else f"{best}-{worst}"
                axis.annotate(ranks, (1.02, place), xycoords=("axes fraction", "data"), fontsize=SMALL, va="center")
        axis.annotate("rank", (1.02, 1.02), xycoords="axes fraction", fontsize=SMALL - 1, color=GREY)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.use_sticky_edges = False  # also of the grey bars
        axis.margins(x=0.12)
        low, high = axis.get_xlim()
        side = "left" if high > -low else "right"  # of the line, where there is more room
        axis.annotate(" reference ", (0, rows.index(reference)), fontsize=SMALL - 1, color=GREY, va="center", ha=side)
    axes[0].set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=SMALL)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw(axis: Any, place: int, difference: Mapping[str, Any], of_seeds: list[float]) -> None:
    if (least := difference["detectable"]) is not None:
        axis.barh(place, 2 * least, left=-least, height=0.62, color="#e5e7eb", zorder=0)
    if difference["low"] is not None:
        axis.hlines(place, difference["low"], difference["high"], color=colour(0), linewidth=2)
    axis.plot(of_seeds, [place + 0.22] * len(of_seeds), "|", color=GREY, markersize=5)
    told = (difference["p_holm"] or 0) <= 0.05 if difference["p_holm"] is not None else False
    face = colour(0) if told else "white"
    axis.plot([difference["value"]], [place], "o", color=colour(0), markerfacecolor=face, markersize=6.5)


def _of_seeds(row: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> list[float]:
    """Differences seed by seed, or pair by pair of seeds; none where the seeds are not the same."""
    if row["seeds"] != reference["seeds"]:
        return []
    return [a - b for a, b in zip(row["values"][name], reference["values"][name], strict=True)]
