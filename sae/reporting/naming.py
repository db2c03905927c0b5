"""How good the latents' names are, beside chance and controls, as `sae explain` left it in the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae.pictures.charts import draw_histograms
from sae.pictures.ranges import draw_ranges
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Names"
SCORES = "Names on whole texts"
CONTROLS = ("other name", "shuffled words")
"""Columns of explain.json's scores."""
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
    _by_scorer(page, named)


def _by_scorer(page: IllustratedPage, named: Mapping[Subject, dict[str, Any]]) -> None:
    """What scorers said of the names on whole texts, and how far they agree."""
    scored = {s: of["scores"] for s, of in named.items() if of.get("scores")}
    if not scored:
        page.leave_out(SCORES, "sae explain RUN --score detection,fuzzing,simulation")
        return
    page.text(
        "Detection asks in which texts the latent fires, fuzzing whether the right tokens are marked (both AUROC, "
        "chance 0.5), simulation how strongly it fires at each token (correlation, chance 0). Against near latents' "
        "texts is the hard case. The controls are another latent's name and the same words shuffled."
    )
    several = len(named) > 1
    rows = [{**({"run": s.name} if several else {}), **row} for s, of in scored.items() for row in of]
    page.table(rows)
    for subject, of in scored.items():
        panels: dict[str, dict[str, dict[str, Any]]] = {}
        for row in of:
            for series in ("score", *CONTROLS):
                if row.get(series) is not None:
                    label = f"{row['scorer']}, against {row['against']}"
                    panels.setdefault(row["measure"], {}).setdefault(series, {})[label] = row[series]
        page.illustrate(
            "name_scores" + (f"_{subject.name.replace('/', '_')}" if several else ""),
            draw_ranges(panels, x="Score", controls=frozenset(CONTROLS)),
            f"{f'{subject.name}. ' if several else ''}The mean score of the names, with its 95% interval over "
            "latents, beside the controls (grey, hollow): names say something about their latents as far as they lie "
            "right of them.",
        )
    agreements = [
        {**({"run": s.name} if several else {}), **row} for s, of in named.items() for row in of.get("agreement", ())
    ]
    if agreements:
        page.fold("Agreement of scorers", "Rank correlation over the latents that both scored.", agreements)


def _scores(subject: Subject) -> list[float]:
    scores = (name.get("score") for name in subject.annotations.names().values())
    return [float(score) for score in scores if score is not None]


def _columns(report: dict[str, Any]) -> dict[str, Any]:
    return {head: report.get(key) for key, head in COLUMNS.items()}
