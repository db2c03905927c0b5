"""Bar charts: few named numbers, or many ranked ones.

draw_bars({"AE": .3, "PCA": .35}, label="FVU")
draw_ranked(kl, label="KL (nats)", rank="Latent, by its KL")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae.base.tables import number
from sae.book.pictures.style import GREY, SMALL, chart, colour, legend, plain_numbers
from sae.evaluation.variational import ACTIVE_VARIANCE, Activity


def draw_bars(
    values: Mapping[str, float], *, label: str, log: bool = False, reference: tuple[str, float] | None = None
) -> Figure:
    """A horizontal bar for every name, with its number beside it.

    Args:
        values: by name.
        label: what the numbers are, with the unit.
        log: logarithmic axis, for positive numbers.
        reference: a name and a number, drawn as a vertical line.
    """
    figure, axis = chart(7.0, 0.42 * len(values) + 1.1, x=label)
    numbers = [float(value) for value in values.values()]
    bars = axis.barh(range(len(values)), numbers, color=colour(0), height=0.62)
    axis.bar_label(bars, [number(value) for value in numbers], padding=5, fontsize=SMALL - 0.5)
    axis.set_yticks(range(len(values)), list(values), fontsize=SMALL)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    if log:
        axis.set_xscale("log")
        plain_numbers(axis.xaxis, numbers)
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
    marked: np.ndarray | None = None,
    names: tuple[str, str] = ("", ""),
    title: str = "",
) -> Figure:
    """Bars in falling order, thin ones if there are many.

    Args:
        values: [n].
        label: what they are, with the unit.
        rank: what the bars are.
        marked: bool [n], which bars have the first colour; all by default.
        names: of the marked and of the others, for the legend.
        title: over the chart.
    """
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-numbers, kind="stable")
    first = np.ones(len(numbers), dtype=bool) if marked is None else marked[order]
    figure, axis = chart(7.0, 2.8, x=rank, y=label, title=title)
    places = np.arange(1, len(numbers) + 1)
    for kind, (bars, name) in enumerate(zip((first, ~first), names, strict=True)):
        if bars.any():
            share = 0.8 if len(numbers) <= 100 else 1.0
            axis.bar(places[bars], numbers[order][bars], width=share, color=colour(kind), label=name or None)
    if len(numbers) <= 16:
        axis.set_xticks(places, [str(i) for i in order])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0.4, len(numbers) + 0.6)
    axis.grid(False, axis="x")
    legend(figure, axis)
    return figure


def draw_activity(latents: Activity, *, title: str = "") -> Figure:
    """Mean KL of every latent of a Gaussian code, active and collapsed ones in different colours."""
    active = (latents.variance > ACTIVE_VARIANCE).numpy()
    names, rank = ("active", "collapsed"), "Latent, by its KL"
    return draw_ranked(latents.kl.numpy(), label="KL (nats)", rank=rank, marked=active, names=names, title=title)
