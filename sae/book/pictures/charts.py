"""Histograms, scatter plots by label, and heat maps.

draw_histograms({"normal": scores[usual], "anomalous": scores[~usual]}, x="NLL (nats)")
draw_scatter(codes, labels, names, x="z 0", y="z 1")
draw_heatmap(information, rows=["z 3", "z 0"], columns=factor_names, label="I / H")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sae.book.pictures.style import GREY, MARKERS, SMALL, chart, colour, legend

ANNOTATED = 200  # cells of a heat map up to which numbers are written


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
