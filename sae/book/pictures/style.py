"""The style of all charts: colours that colour-blind readers can tell apart, light axes, legends outside the data.

figure, axis = chart(6, 3, x="Images seen", y="Loss (nats an image)")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's (2008), without the yellow, which is too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
STYLES = ("-", "--", "-.", ":")
GREY = "#666666"
SMALL = 9.0  # points, of all text in charts


def colour(place: int) -> str:
    """The colour of the series at this place; colours repeat after the seventh."""
    return COLOURS[place % len(COLOURS)]


def chart(width: float, height: float, *, x: str = "", y: str = "", title: str = "") -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one axis, named with its units."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    quiet(axis, x=x, y=y, title=title)
    return figure, axis


def quiet(axis: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Name an axis, and remove its top and right border."""
    axis.set_xlabel(x, fontsize=SMALL)
    axis.set_ylabel(y, fontsize=SMALL)
    axis.set_title(title, fontsize=SMALL + 0.5, loc="left")
    axis.tick_params(labelsize=SMALL - 0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def plain_numbers(axis: Axis, values: Sequence[float]) -> None:
    """Label a logarithmic axis for these positive values with plain numbers, few enough to read."""
    narrow = math.log10(max(values) / min(values)) < 2
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, axis: Axes, *, title: str = "") -> None:
    """The legend of an axis' named series, to its right; none for fewer than two."""
    handles, names = axis.get_legend_handles_labels()
    if len(names) > 1:
        options: dict[str, Any] = {"title": title, "title_fontsize": SMALL} if title else {}
        figure.legend(handles, names, loc="outside right upper", fontsize=SMALL, frameon=False, **options)
