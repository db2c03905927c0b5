"""The course of the training."""

from __future__ import annotations

from collections.abc import Sequence

from sae.base.tables import number
from sae.pictures.lines import Curve, draw_lines
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

CURVES = {
    "fvu": (
        "FVU",
        "Share of the variance of the training batches that is not explained; it should fall and level off.",
    ),
    "l0": ("L0", "Active latents a token in the training batches."),
    "dead": (
        "Dead latents, share",
        "Share of the latents that have not fired for a while; a share that keeps growing wastes the dictionary.",
    ),
}
"""Key in metrics.jsonl -> name of the axis, and how it is read."""
STILL = 1e-3
"""Spread of a curve, as a share of its largest value, up to which it is told and not drawn."""
POINTS = 400
"""Points of a training curve that are drawn."""


def training(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """A figure for each of `CURVES`."""
    logged = [s for s in subjects if len(s.metrics) > 1]
    if not logged:
        return
    page.section("Training", "Means over the steps between two lines of metrics.jsonl, on the training batches.")
    for key, (label, caption) in CURVES.items():
        curves = {}
        for subject in logged:
            lines = [line for line in subject.metrics if line.get(key) is not None]
            lines = lines[:: max(1, len(lines) // POINTS)]
            if lines:
                curves[subject.name] = Curve([line[subject.unit] for line in lines], [line[key] for line in lines], "-")
        values = [value for curve in curves.values() for value in curve.y]
        if not values:
            continue
        if max(values) - min(values) <= STILL * max(values):
            page.text(f"{label} stayed at {number(float(values[-1]))}.")
            continue
        unit = " or ".join(dict.fromkeys(s.unit for s in logged))
        page.illustrate(f"training_{key}", draw_lines(curves, f"Training {unit}", label), caption)
