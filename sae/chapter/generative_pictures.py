"""Drawings of how generated samples score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sae.chapter.generative_models import Measured


def draw_scores(found: Mapping[str, Sequence[Measured]], floor: float) -> Figure:
    """Fréchet distance of every seed of every family, and the data's own; failed seeds are crosses."""
    figure = Figure(figsize=(6.4, 0.42 * len(found) + 1.0))
    axis = figure.subplots()
    for place, seeds in enumerate(found.values()):
        for m in seeds:
            if m.score.frechet is not None:
                axis.plot(m.score.frechet.distance, place, "x" if m.score.failure else "o", color="C3", alpha=0.7)
    axis.axvline(floor, linestyle="--", color="0.5")
    axis.set_xlim(left=0)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel("Fréchet distance, left is better")
    return figure


def draw_steps(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Fréchet distance by network calls a sample."""
    figure = Figure(figsize=(5.0, 3.0))
    axis = figure.subplots()
    for name, points in found.items():
        axis.plot([p["evaluations"] for p in points], [p["frechet"] for p in points], "o-", label=name)
    calls = sorted({int(p["evaluations"]) for points in found.values() for p in points})
    axis.set_xscale("log")
    axis.set_xticks(calls, [str(n) for n in calls])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("network calls a sample")
    axis.set_ylabel("Fréchet distance")
    axis.legend()
    return figure
