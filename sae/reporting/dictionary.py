"""The dictionary: how often its latents fire, and how close its atoms lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae.evaluation.matching.assignment import nearest_other
from sae.pictures.charts import draw_histograms
from sae.pictures.lines import Curve, draw_lines
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject, random_atoms

DUPLICATE = 0.9
"""|cosine| from which on two atoms count as duplicates."""


def densities(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """How often latents fire."""
    shown = {s: s.numbers["densities"] for s in subjects if s.numbers.get("densities")}
    if not shown:
        return
    page.section(
        "Densities",
        "How many latents fire how often on the held-out part. A hump of latents that fire on more than one token in "
        "ten, or a long tail of very rare ones, is worth a look.",
    )
    curves = {}
    for subject, histogram in shown.items():
        edges = np.asarray(histogram["log10_edges"])
        curves[subject.name] = Curve(((edges[1:] + edges[:-1]) / 2).tolist(), histogram["latents"])
    never = "; ".join(f"{s.name}: {h['never']:,} of {s.model.width:,} never fired" for s, h in shown.items())
    page.illustrate(
        "densities",
        draw_lines(curves, "log10 of the firing rate", "Latents"),
        f"The number of latents by the share of tokens on which they fire: -2 is one token in 100, -4 one in 10,000. "
        f"{never}.",
    )


def geometry(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """How close atoms lie to each other, beside random directions."""
    page.section(
        "Geometry of the dictionary",
        "For every latent the largest |cosine| of its atom with another atom. Random directions show what the number "
        "of latents alone gives; atoms close to 1 are duplicates.",
    )
    histograms: dict[str, np.ndarray] = {}
    duplicates = []
    for subject in subjects:
        nearest = nearest_other(subject.model.dictionary.W).strength
        histograms[subject.name] = nearest.numpy()
        count = int((nearest > DUPLICATE).sum())
        duplicates.append(f"{subject.name}: median {nearest.median():.3f}, {count:,} over {DUPLICATE}")
    shapes = {tuple(s.model.dictionary.W.shape): s for s in subjects}
    for (latents, dim), subject in shapes.items():
        control = nearest_other(random_atoms(subject.model.dictionary.W)).strength
        histograms[f"random, {latents:,} in {dim:,} dimensions"] = control.numpy()
    figure = draw_histograms(histograms, x="Largest |cosine| with another atom", y="Share of latents")
    page.illustrate(
        "nearest_cosines",
        figure,
        "The share of latents by how close their nearest neighbour in the dictionary points; further right than the "
        f"random directions means atoms that lie in groups. {'; '.join(duplicates)}.",
    )
