"""How stable the latents are over other trainings, beside chance, as `sae match` left it in the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae.evaluation.matching.scores import Scores
from sae.evaluation.synthetic.metrics import RECOVERED
from sae.features.explain.scoring import mean_interval
from sae.pictures.charts import draw_histograms
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Stability"
BINS = np.linspace(0, 1, 41)


def stability(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The distribution of the latents' scores, and their means beside chance."""
    scores = {s: s.stability for s in subjects}
    known = {s: of for s, of in scores.items() if of is not None and np.isfinite(of.stability).any()}
    if not known:
        page.leave_out(TITLE, "sae match RUN OTHER_RUN ..., with a run of another seed")
        return
    page.section(
        TITLE,
        "Another training, with another seed, finds only some of the same latents. A latent's stability is the mean, "
        "over the other runs, of its best match there: the |cosine| of the atoms (or the |correlation| of the "
        "activations, where atoms cannot be compared). Chance is the same for random atoms with the covariance of the "
        "other run's (for permuted activations).",
    )
    page.table([_row(subject, of) for subject, of in known.items()])
    values = {s.name: of.stability[np.isfinite(of.stability)].astype(float) for s, of in known.items()}
    marks: dict[str, float] = {}
    for subject, of in known.items():
        before = f"{subject.name}: " if len(known) > 1 else ""
        marks[f"{before}mean of chance"] = of.info["chance_mean"]
        marks[f"{before}19 in 20 stay below by chance"] = of.info["chance"]
    figure = draw_histograms(values, x="Stability", y="Share of latents", bins=BINS, at=marks)
    page.illustrate(
        "stability",
        figure,
        f"The share of latents by their stability. Those right of {RECOVERED} were found again by the other trainings; "
        "those left of the lines are no more alike than chance, so another seed would have given other ones.",
    )


def _row(subject: Subject, scores: Scores) -> dict[str, Any]:
    known = scores.stability[np.isfinite(scores.stability)].astype(float)
    return {
        "run": subject.name,
        "compared with": ", ".join(run["name"] for run in scores.info["runs"]),
        "latents": len(known),
        "mean stability": mean_interval(known),
        "chance, mean": scores.info["chance_mean"],
        f"share over {RECOVERED}": mean_interval((known > RECOVERED).astype(float)),
        "share over chance": mean_interval((known > scores.info["chance"]).astype(float)),
    }
