"""What steering with single latents does, beside its controls, as `sae steer --measure` left it in the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae.features.steer.measure import LATENT, PLAIN, PROMPT, RANDOM
from sae.pictures.lines import Curve, draw_lines
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Steering"
DRAWN = 3
"""Latents of a run that get figures; the table has all."""


def steering(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Response and loss over the dose for the measured latents, and the strength that is proposed for each."""
    measured = {s: s.annotations.steering() for s in subjects if s.kind == "language"}
    measured = {s: of for s, of in measured.items() if of}
    if not measured:
        if any(s.kind == "language" for s in subjects):
            page.leave_out(TITLE, "sae steer RUN --latent I --measure")
        return
    page.section(
        TITLE,
        "A multiple of a latent's atom (dose 1: its largest collected activation) is added while the model writes, and "
        "the plain model then reads the text. The response is how strongly the latent fires on it, as a share of its "
        "largest activation; the loss added is what the text costs in fluency. The controls push as hard along "
        "random latents, the mean difference and a probe, or ask for it in a prompt.",
    )
    several = len(subjects) > 1
    page.table(
        [_row(s.name if several else "", latent, of) for s, all_ in measured.items() for latent, of in all_.items()]
    )
    for subject, latents in measured.items():
        for latent, result in list(latents.items())[:DRAWN]:
            title = f"{f'{subject.name}, ' if several else ''}latent {latent:,}"
            for key, axis, caption in (
                (
                    "response",
                    "Response (share of the largest)",
                    "How strongly the latent fires on the steered text, over the dose; bands are 95% intervals over "
                    "prompts. Steering with the latent says something only where it lies above the random latents.",
                ),
                (
                    "loss_added",
                    "Loss added (nats a token)",
                    "What the same texts cost in fluency, by the plain model's own loss: 0 is as fluent as unsteered "
                    "text, and over 0.5 is called not fluent.",
                ),
            ):
                figure = draw_lines(_curves(result["rows"], key), "Dose", axis, log_x=True, title=title)
                name = (
                    f"steering_{key}_{subject.name.replace('/', '_')}_{latent}"
                    if several
                    else f"steering_{key}_{latent}"
                )
                page.illustrate(name, figure, caption)


def _curves(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Curve]:
    """A line for every method with doses, and level ones for what has none."""
    doses = sorted({row["dose"] for row in rows if row["dose"]})
    curves: dict[str, Curve] = {}
    for row in rows:
        if row["method"] in (PLAIN, PROMPT):
            name = "unsteered" if row["method"] == PLAIN else row["method"]
            curves[name] = Curve([doses[0], doses[-1]], [row[key]["value"]] * 2, "-")
    for method in dict.fromkeys(row["method"] for row in rows if row["dose"]):
        points = sorted((row["dose"], row[key]) for row in rows if row["method"] == method)
        curves[method] = Curve([dose for dose, _ in points], [value for _, value in points])
    # the latent first, so that its colour is the first
    return {LATENT: curves.pop(LATENT), **curves} if LATENT in curves else curves


def _row(run: str, latent: int, result: Mapping[str, Any]) -> dict[str, Any]:
    dose = result["proposed"]["dose"]
    mine, random = (
        next((row for row in result["rows"] if row["method"] == method and row["dose"] == dose), None)
        for method in (LATENT, RANDOM)
    )
    return {
        **({"run": run} if run else {}),
        "latent": f"#{latent:,}" + (f" {result['name']}" if result["name"] else ""),
        "proposed dose": dose,
        "response": mine and mine["response"],
        "of random latents": random and random["response"],
        "loss added": mine and mine["loss_added"],
        "why": result["proposed"]["why"],
    }
