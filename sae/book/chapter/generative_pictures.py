"""Drawings of how generated samples score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sae.book.chapter.generative_models import Measured


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
