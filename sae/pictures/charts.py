"""Histograms, scatter plots by label, heat maps and bars, and the style of all charts.

Colours can be told apart by colour-blind readers, axes are light, and legends stand outside the data.

draw_bars({"AE": .3, "PCA": .35}, label="FVU")
draw_ranked(kl, label="KL (nats)", rank="Latent, by its KL")
draw_histograms({"normal": scores[usual], "anomalous": scores[~usual]}, x="NLL (nats)")
draw_scatter(codes, labels, names, x="z 0", y="z 1")
draw_heatmap(information, rows=["z 3", "z 0"], columns=factor_names, label="I / H")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from sae.base.tables import number
from sae.evaluation.variational import ACTIVE_VARIANCE, Activity

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's (2008), without the yellow, which is too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
STYLES = ("-", "--", "-.", ":")
GREY = "#666666"
SMALL = 9.0  # points, of all text in charts
ANNOTATED = 200  # cells of a heat map up to which numbers are written


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
    axis.set_major_formatter(lambda value, _: tick(value))
    axis.set_minor_formatter(NullFormatter())


def tick(value: float) -> str:
    """A number on an axis: three digits, or whole from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def legend(figure: Figure, axis: Axes, *, title: str = "") -> None:
    """The legend of an axis' named series, to its right; none for fewer than two."""
    handles, names = axis.get_legend_handles_labels()
    if len(names) > 1:
        options: dict[str, Any] = {"title": title, "title_fontsize": SMALL} if title else {}
        figure.legend(handles, names, loc="outside right upper", fontsize=SMALL, frameon=False, **options)


def draw_histograms(
    values: Mapping[str, np.ndarray],
    *,
    x: str,
    y: str = "Share",
    bins: int | np.ndarray = 40,
    title: str = "",
    at: Mapping[str, float] | None = None,
    counts: bool = False,
) -> Figure:
    """Histograms over common bins, each summing to 1 (or to its number of values).

    Args:
        values: finite numbers [n] by name.
        x: what they are, with the unit.
        y: name of the other axis.
        bins: their number between the least and the largest value, or their edges.
        title: over the chart.
        at: named places, drawn as vertical lines.
        counts: show counts instead of shares.
    """
    figure, axis = chart(7.0, 2.9, x=x, y=y, title=title)
    pooled = np.concatenate([np.asarray(v, dtype=np.float64) for v in values.values()])
    edges = np.histogram_bin_edges(pooled, bins).tolist()
    for place, (name, numbers) in enumerate(values.items()):
        weights = None if counts else np.full(len(numbers), 1 / max(len(numbers), 1))
        axis.hist(numbers, edges, weights=weights, color=colour(place), alpha=0.35, label=name)
        # outlines separate overlapping histograms
        axis.hist(numbers, edges, weights=weights, color=colour(place), histtype="step", linewidth=1.6)
    for place, (name, x_at) in enumerate((at or {}).items()):
        style = ("--", ":", "-.")[place % 3]
        axis.axvline(x_at, color="black" if place == 0 else GREY, linestyle=style, linewidth=1.3, label=name)
    legend(figure, axis)
    return figure


def draw_scatter(
    points: np.ndarray,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
    *,
    x: str,
    y: str,
    title: str = "",
    legend_title: str = "",
) -> Figure:
    """Points [n, 2] by label int64 [n]: in colour, and by marker (the name itself if it is one character)."""
    figure, axis = chart(6.6, 5.0, x=x, y=y, title=title)
    if labels is None:
        axis.scatter(*points.T, s=9, color=colour(0), alpha=0.7, linewidths=0)
    else:
        short = bool(names) and all(len(name) == 1 for name in names)
        for place, label in enumerate(np.unique(labels)):
            name = names[label] if names else str(label)
            marker = f"${name}$" if short else MARKERS[place % len(MARKERS)]
            rows = labels == label
            axis.scatter(*points[rows].T, s=26 if short else 12, marker=marker, color=colour(place), linewidths=0.3,
                         alpha=0.85, label=name)  # fmt: skip
    axis.set_aspect("equal", adjustable="datalim")
    legend(figure, axis, title=legend_title)
    return figure


def draw_heatmap(
    matrix: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    title: str = "",
    x: str = "",
    y: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A matrix [R, C] by brightness, with its numbers if they are few; `label` says what they are."""
    height, width = matrix.shape
    figure, axis = chart(max(3.6, 0.62 * width + 2.2), max(2.0, 0.28 * height + 1.0), x=x, y=y, title=title)
    low, high = limits or (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    image = axis.imshow(matrix, cmap="cividis", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
    axis.grid(False)
    axis.set_xticks(range(width), list(columns), rotation=30 if width > 3 else 0, ha="right" if width > 3 else "center")
    axis.set_yticks(range(height), list(rows))
    axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    if matrix.size <= ANNOTATED:
        for (i, j), value in np.ndenumerate(matrix):
            dark = (value - low) / max(high - low, 1e-12) < 0.55
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=SMALL - 1.5,
                      color="white" if dark else "black")  # fmt: skip
    return figure


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
