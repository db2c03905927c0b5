"""Numbers with their intervals, one row each, in panels that share the axis.

draw_ranges({"Word": {"the run": {"first": Interval(.1, .05, .15)}, "PCA": {"first": 0.4}}}, x="Delta CE (nats)")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae.pictures.charts import GREY, MARKERS, SMALL, colour, quiet
from sae.pictures.lines import part_of

ROW, LANE, HEAD, FOOT, LEGEND = 0.26, 0.12, 0.4, 0.65, 0.25
"""Inches: least of a row and of a series in it; a panel's title and margin, the axis, a line of the legend."""
NAMES_A_LINE = 3


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
    height = max(ROW, LANE * max(len(series) for series in panels.values()))
    heights = [HEAD + height * len(names) for names in rows.values()]
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    lines = -(-len(names) // NAMES_A_LINE) if len(names) > 1 else 0
    figure = Figure(figsize=(width, sum(heights) + FOOT + LEGEND * lines), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    plain = [name for name in names if name not in controls]
    tints = {name: GREY if name in controls else colour(plain.index(name)) for name in names}
    points: dict[str, dict[str, Any]] = {
        name: {
            "linestyle": "none",
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5,
            "color": tints[name],
            "markerfacecolor": "white" if name in controls else tints[name],
        }
        for place, name in enumerate(names)
    }
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        quiet(axis, title=title)
        axis.grid(False, axis="y")
        offsets = np.linspace(-0.28, 0.28, len(series)) if len(series) > 1 else [0.0]
        for offset, (name, values) in zip(offsets, series.items(), strict=True):
            places = [(rows[title].index(row) + offset, value) for row, value in values.items() if value is not None]
            at = [place for place, _ in places]
            low, middle, high = ([part_of(v, part) for _, v in places] for part in ("low", "value", "high"))
            axis.hlines(at, low, high, color=tints[name], linewidth=1.4)
            axis.plot(middle, at, **points[name])
        axis.set_yticks(range(len(rows[title])), rows[title], fontsize=SMALL)
        axis.set_ylim(len(rows[title]) - 0.5, -0.5)
        if zero:
            axis.axvline(0, color=GREY, linewidth=0.8)
    axes[-1].set_xlabel(x, fontsize=SMALL)
    if len(names) > 1:
        handles = [Line2D([], [], label=name, **points[name]) for name in names]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(names), NAMES_A_LINE), fontsize=SMALL,
                      frameon=False)  # fmt: skip
    return figure
