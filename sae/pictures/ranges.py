"""Numbers with their intervals, one row each, in panels that share the axis.

draw_ranges({"Word": {"the run": {"first": Interval(.1, .05, .15)}, "PCA": {"first": 0.4}}}, x="Delta CE (nats)")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae.pictures.charts import GREY, MARKERS, SMALL, colour, quiet
from sae.pictures.lines import part_of

ROW, HEAD, FOOT = 0.26, 0.3, 0.55
"""Inches of a row, of a panel's title, and of the axis."""


def draw_ranges(
    panels: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    x: str,
    controls: frozenset[str] = frozenset(),
    zero: bool = True,
    width: float = 7.4,
) -> Figure:
    """A dot with its interval for every row and series; the series of a panel stand side by side in each row.

    Args:
        panels: title -> series -> row -> a number or an interval, None for none.
        x: what the numbers are, with the unit.
        controls: series that are drawn grey and hollow.
        zero: whether a line marks 0.
        width: inches.
    """
    rows = {title: list(dict.fromkeys(row for of in series.values() for row in of)) for title, series in panels.items()}
    lanes = max(1, max(len(series) for series in panels.values()) // 3)
    heights = [HEAD + ROW * lanes * len(names) for names in rows.values()]
    figure = Figure(figsize=(width, sum(heights) + FOOT), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    plain = [name for name in names if name not in controls]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        quiet(axis, title=title)
        axis.grid(False, axis="y")
        offsets = np.linspace(-0.28, 0.28, len(series)) if len(series) > 1 else [0.0]
        for offset, (name, values) in zip(offsets, series.items(), strict=True):
            places = [(rows[title].index(row) + offset, value) for row, value in values.items() if value is not None]
            own = GREY if name in controls else colour(plain.index(name))
            at = [place for place, _ in places]
            axis.hlines(
                at, *([part_of(v, end) for _, v in places] for end in ("low", "high")), color=own, linewidth=1.4
            )
            axis.plot(
                [part_of(v, "value") for _, v in places],
                at,
                linestyle="none",
                marker=MARKERS[names.index(name) % len(MARKERS)],
                markersize=5,
                color=own,
                markerfacecolor="white" if name in controls else own,
            )
        axis.set_yticks(range(len(rows[title])), rows[title], fontsize=SMALL)
        axis.set_ylim(len(rows[title]) - 0.5, -0.5)
        if zero:
            axis.axvline(0, color=GREY, linewidth=0.8)
    axes[-1].set_xlabel(x, fontsize=SMALL)
    for name in names if len(names) > 1 else ():
        own = GREY if name in controls else colour(plain.index(name))
        face = "white" if name in controls else own
        axes[0].plot([], [], linestyle="none", marker=MARKERS[names.index(name) % len(MARKERS)], markersize=5,
                     color=own, markerfacecolor=face, label=name)  # fmt: skip
    if len(names) > 1:
        figure.legend(loc="outside upper left", ncols=min(len(names), 3), fontsize=SMALL, frameon=False)
    return figure
