"""Curves over a common axis, with bands for intervals.

draw_lines({"PCA": Curve(k, fvu), "AE": Curve(k, [Interval(.3, .28, .33), ...])}, "latents", "FVU", log_x=True)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sae.evaluation.bootstrap import Interval
from sae.pictures.charts import GREY, MARKERS, SMALL, STYLES, chart, colour, legend, plain_numbers, tick

APART = 1.3  # least ratio of neighbours on a logarithmic axis for all of them to be labelled


class Curve(NamedTuple):
    """One line."""

    x: Sequence[float]
    y: Sequence[Any]
    """Numbers; or means with their intervals ({"value", "low", "high"} or `Interval`), drawn as a band."""
    style: str = "-o"
    """"-o" for joined numbers, "-" for a line of very many, "o" for unordered ones; dashes and markers vary."""


def draw_lines(
    curves: Mapping[str, Curve],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
    at: Mapping[str, float] | None = None,
    size: tuple[float, float] = (7.0, 3.2),
) -> Figure:
    """Curves by name, which differ in colour, line and marker.

    Args:
        curves: what to draw.
        x: name of the axis, with its unit.
        y: likewise.
        log_x: logarithmic axis.
        log_y: likewise.
        title: over the chart.
        at: named places on x, drawn as vertical lines.
        size: inches.
    """
    figure, axis = chart(*size, x=x, y=y, title=title)
    for place, (name, curve) in enumerate(curves.items()):
        joined, marked = "-" in curve.style, curve.style.strip("-:.") != ""
        axis.plot(
            curve.x,
            [part_of(v, "value") for v in curve.y],
            label=name,
            color=colour(place),
            linestyle=STYLES[place % len(STYLES)] if joined else "none",
            marker=MARKERS[place % len(MARKERS)] if marked else None,
            markersize=4.5,
            linewidth=1.6,
        )
        if not any(isinstance(v, Mapping | Interval) for v in curve.y):
            continue
        low, high = ([part_of(v, part) for v in curve.y] for part in ("low", "high"))
        if joined:
            axis.fill_between(curve.x, low, high, color=colour(place), alpha=0.18, linewidth=0)
        else:
            axis.vlines(curve.x, low, high, color=colour(place), linewidth=1.2)
    if log_x:
        axis.set_xscale("log")
        ticks = sorted({value for curve in curves.values() for value in curve.x})
        if len(ticks) <= 8 and all(b > APART * a for a, b in itertools.pairwise(ticks)):
            axis.set_xticks(ticks, [tick(value) for value in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            plain_numbers(axis.xaxis, ticks)
    if log_y:
        axis.set_yscale("log")
        plain_numbers(axis.yaxis, [part_of(v, "value") for curve in curves.values() for v in curve.y])
    for name, place in (at or {}).items():
        axis.axvline(place, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        axis.annotate(name, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2), ha="center", va="bottom",
                      textcoords="offset points", fontsize=SMALL - 1, color=GREY)  # fmt: skip
    legend(figure, axis)
    return figure


def part_of(value: Any, name: str) -> float:
    """The "value", "low" or "high" of an interval, or a number by itself; NaN for an unknown bound."""
    if isinstance(value, Interval):
        return getattr(value, name)
    part = value[name] if isinstance(value, Mapping) else value
    return math.nan if part is None else part
