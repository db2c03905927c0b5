"""Bar charts: few named numbers with their intervals, or many ranked ones.

draw_bars({"AE": Interval(.3, .28, .33), "PCA": .35}, label="FVU")
draw_ranked(kl, label="KL (nats)", rank="Latent, by its KL")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae.base.tables import number
from sae.book.pictures.style import GREY, SMALL, chart, colour, legend, plain_numbers
from sae.evaluation.bootstrap import Interval


def draw_bars(
    values: Mapping[str, float | Interval],
    *,
    label: str,
    title: str = "",
    log: bool = False,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """A horizontal bar a name, with its number beside it.

    Args:
        values: by name; an interval gets a whisker.
        label: what the numbers are, with the unit.
        title: over the chart.
        log: logarithmic axis, for positive numbers.
        reference: a name and a number that get a vertical line.
    """
    figure, axis = chart(7.0, 0.42 * len(values) + 1.1, x=label, title=title)
    ends: list[float] = []
    for place, value in enumerate(values.values()):
        low, high = (value.low, value.high) if isinstance(value, Interval) else (None, None)
        middle = value.value if isinstance(value, Interval) else value
        axis.barh(place, middle, color=colour(0), height=0.62)
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color="black", linewidth=1.4, marker="|", markersize=7)
        ends.append(max(middle, high if high is not None else middle))
        axis.annotate(
            number(float(middle)),
            (ends[-1], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL - 0.5,
        )
    axis.set_yticks(range(len(values)), list(values), fontsize=SMALL)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    if log:
        axis.set_xscale("log")
        plain_numbers(axis.xaxis, ends)
    axis.margins(x=0.14)  # room for the numbers
    if reference is not None:
        axis.axvline(reference[1], color=GREY, linestyle="--", linewidth=1.2, label=reference[0])
        figure.legend(loc="outside lower right", fontsize=SMALL - 0.5, frameon=False)
    return figure


def draw_ranked(
    values: Sequence[float] | np.ndarray,
    *,
    label: str,
    rank: str,
    marked: Sequence[bool] | np.ndarray | None = None,
    names: tuple[str, str] = ("", ""),
    title: str = "",
    log: bool = False,
) -> Figure:
    """Bars in falling order, thin ones where there are many.

    Args:
        values: [n].
        label: what they are, with the unit.
        rank: what the bars are.
        marked: bool [n], those in the first colour; all by default.
        names: of the marked and of the others, for the legend.
        title: over the chart.
        log: logarithmic axis.
    """
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-numbers, kind="stable")
    chosen = np.ones(len(numbers), dtype=bool) if marked is None else np.asarray(marked, dtype=bool)[order]
    figure, axis = chart(7.0, 2.8, x=rank, y=label, title=title)
    places = np.arange(1, len(numbers) + 1)
    for kind, of_kind, name in ((0, chosen, names[0]), (1, ~chosen, names[1])):
        if of_kind.any():
            share = 0.8 if len(numbers) <= 100 else 1.0
            axis.bar(places[of_kind], numbers[order][of_kind], width=share, color=colour(kind), label=name or None)
    if log:
        axis.set_yscale("log")
        plain_numbers(axis.yaxis, numbers[numbers > 0].tolist())
    if len(numbers) <= 16:
        axis.set_xticks(places, [str(i) for i in order])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0.4, len(numbers) + 0.6)
    axis.grid(False, axis="x")
    legend(figure, axis)
    return figure
