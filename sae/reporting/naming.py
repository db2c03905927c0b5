"""How good the latents' names are, beside chance and controls, as `sae explain` left it in the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae.pictures.charts import draw_histograms
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Names"
CHANCE = 0.5
BINS = np.linspace(0, 1, 41)
COLUMNS = {
    "live": "latents that fire",
    "named": "named",
    "scored": "scored",
    "score": "AUROC",
    "score_neighbours": "AUROC against near latents",
    "control": "AUROC of another latent's name",
    "precision": "precision",
    "recall": "recall",
    "clear": "share above chance",
}
"""Key of explain.json -> heading."""


def naming(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The scores of the names, and their distribution."""
    named = {s: s.naming for s in subjects if s.naming}
    if not named:
        if any(s.kind == "language" for s in subjects):
            page.leave_out(TITLE, "sae features RUN, then sae explain RUN")
        return
    page.section(
        TITLE,
        "A name is a rule that says where its latent fires. Its AUROC is how well it tells held-out texts in which the "
        f"latent fires from others: {CHANCE} is chance, 1 is always right. The control is the name of another latent, "
        "on the same texts; near latents give texts that are easily confused.",
    )
    page.table([{"run": s.name, **_columns(of)} for s, of in named.items()])
    values = {s.name: np.array(_scores(s)) for s in named}
    values = {name: scores for name, scores in values.items() if len(scores)}
    if values:
        page.illustrate(
            "names",
            draw_histograms(values, x="AUROC of the name", y="Share of names", bins=BINS, at={"chance": CHANCE}),
            "The share of names by their AUROC; names near the line say no more about their latents than chance.",
        )


def _scores(subject: Subject) -> list[float]:
    scores = (name.get("score") for name in subject.annotations.names().values())
    return [float(score) for score in scores if score is not None]


def _columns(report: dict[str, Any]) -> dict[str, Any]:
    return {head: report.get(key) for key, head in COLUMNS.items()}
