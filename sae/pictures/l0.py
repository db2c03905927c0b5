"""The picture of `sae choose-l0`: both statistics over L0, and what is said of each level.

draw_choice(choose_l0(runs))
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sae.pictures.charts import GREY, SMALL, colour, quiet, tick

PANELS = {
    "agreement": "Agreement of seeds (MCC)\nthe larger the better",
    "decoder_cosine": "Decoder cosine\nthe smaller the better",
}
"""Statistic -> the name of its axis."""


TITLES = {True: "decides; filled: levels that fit", False: ""}
APART = 1.35
"""Least ratio of two labelled levels."""


def draw_choice(report: dict[str, Any], *, true_l0: float | None = None) -> Figure:
    """A panel for each statistic that was measured, with 95% intervals; levels that do not fit are hollow.

    Args:
        report: what `choose_l0` returned.
        true_l0: a known L0, drawn as a line.
    """
    levels = report["levels"]
    names = [name for name in PANELS if name in levels[0]]
    figure = Figure(figsize=(3.6 * len(names), 3.0), layout="constrained")
    l0s = [level["l0"] for level in levels]
    for place, (name, axis) in enumerate(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True)):
        quiet(axis, x="L0 (latents a token)", y=PANELS[name], title=TITLES[name == report["decided_by"]])
        values, low, high = ([level[name][part] for level in levels] for part in ("value", "low", "high"))
        axis.plot(l0s, values, color=colour(place), linewidth=1.6)
        axis.fill_between(l0s, low, high, color=colour(place), alpha=0.18, linewidth=0)
        for l0, value, level in zip(l0s, values, levels, strict=True):
            fits = level["verdict"] == "fits"
            face = colour(place) if fits else "white"
            axis.plot([l0], [value], marker="o", markersize=6, color=colour(place), markerfacecolor=face)
        axis.set_xscale("log")
        axis.set_xticks(l0s, _labels(l0s))
        axis.xaxis.set_minor_locator(NullLocator())
        if true_l0 is not None:
            axis.axvline(true_l0, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
            axis.annotate(" true", (true_l0, 0.02), xycoords=("data", "axes fraction"), ha="left", va="bottom",
                          fontsize=SMALL - 1, color=GREY)  # fmt: skip
    return figure


def _labels(l0s: list[float]) -> list[str]:
    """Names of the ticks, without those that would run into the one before."""
    labels, last = [], 0.0
    for l0 in l0s:
        labels.append(tick(l0) if l0 >= APART * last else "")
        last = l0 if labels[-1] else last
    return labels
