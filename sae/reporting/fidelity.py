"""How faithful the runs are: numbers beside their controls, FVU over L0, published numbers on the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sae.evaluation.control_table import sentences
from sae.evaluation.tables import MEANING, NAME, beside_controls, controls_of
from sae.pictures.lines import Curve, draw_lines
from sae.reporting.figures import IllustratedPage
from sae.reporting.references import REFERENCES, Reference
from sae.reporting.subjects import Subject

SPREAD = 10
"""Largest FVU over the smallest from which on the axis is logarithmic."""


def overview(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The runs and their controls in one table, and the plane of FVU over L0."""
    page.section(
        "Numbers and controls",
        "Measured on documents held out of training, on the saved weights; brackets are 95% intervals over documents. "
        + MEANING,
    )
    tables = [beside_controls(s.numbers, s.name) for s in subjects]
    columns = list(dict.fromkeys(name for table in tables for name in table[0]))
    several = len(subjects) > 1
    rows = [table[0] for table in tables]
    for subject, (_, *controls) in zip(subjects, tables, strict=True):
        for row in controls:
            # runs at one site share the controls that do not depend on their atoms
            shared = not several or all(row in table for table in tables)
            rows.append(row if shared else {**row, NAME: f"{subject.name}: {row[NAME]}"})
    unique = [row for place, row in enumerate(rows) if row not in rows[:place]]
    page.table([{name: row.get(name) for name in columns} for row in unique])
    for subject, table in zip(subjects, tables, strict=True):
        before = f"{subject.name}: " if several else ""
        if len(table) == 1:
            page.text(f"{before}no control was measured; sae eval measures them unless --controls none is given.")
        elif said := sentences(subject.numbers):
            page.text(f"{before}as good as the autoencoder or better are {'; '.join(said)}.")
        else:
            page.text(f"{before}no control is as good as the autoencoder in FVU, cosine or delta CE.")
    published = published_on(subjects)
    page.illustrate(
        "fvu_over_l0",
        draw_fidelity({s.name: [s.numbers] for s in subjects}, {"": [s.numbers for s in subjects]}, published),
        "Each point is the share of variance that is not explained (FVU), over the latents that are active on a token "
        "(L0); lower and further left is better. PCA is the control: with as many components as the run has active "
        "latents, and with as many as it takes to reach the run's FVU."
        + (" Crosses are published autoencoders on this language model, on other text." if published else ""),
    )


def draw_fidelity(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    places: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Sequence[Reference] = (),
) -> Figure:
    """FVU over L0 of evaluations (eval.json), beside as many principal components of the activations.

    Args:
        runs: name of a line -> its evaluations, joined in the order of their L0.
        places: site -> evaluations of what is reconstructed there, whose controls give the line of components.
        published: autoencoders of others, for orientation.
    """
    curves: dict[str, Curve] = {}
    for name, numbers in runs.items():
        points = sorted(numbers, key=lambda n: _middle(n["l0"]))
        style = "-o" if len(points) > 1 else "o"
        curves[name] = Curve([_middle(n["l0"]) for n in points], [n["fvu"] for n in points], style)
    for site, numbers in places.items():
        pca = {
            _middle(row["l0"]): _middle(row["fvu"])
            for evaluation in numbers
            for name, row in controls_of(evaluation).items()
            if name.startswith("PCA")
        }
        if pca:
            name = "PCA" if len(places) == 1 else f"PCA, {site}"
            curves[name] = Curve(sorted(pca), [pca[k] for k in sorted(pca)], "--o")
    if published:
        curves["published"] = Curve([r.l0 for r in published], [r.fvu for r in published], "o")
    shown = [value for curve in curves.values() for value in map(_middle, curve.y)]
    far = 0 < min(shown) < max(shown) / SPREAD
    return draw_lines(curves, "L0 (active latents a token, or components)", "FVU", log_x=True, log_y=far)


def _middle(value: Any) -> float:
    return float(value["value"] if isinstance(value, Mapping) else value)


def references(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Published numbers on the runs' language models."""
    rows = [
        {
            "source": r.source,
            "model": r.model,
            "site": r.site,
            "latents": r.latents,
            "L0": r.l0,
            "FVU": r.fvu,
            "delta CE": r.delta_ce,
        }
        for r in published_on(subjects)
    ]
    if rows:
        page.section(
            "Published on the same language model",
            "As their authors report them, on their own text and with their own definitions; for orientation alone.",
        )
        page.table(rows)


def published_on(subjects: Sequence[Subject]) -> list[Reference]:
    """Published autoencoders on the subjects' language models."""
    models = {str(subject.language_model).rpartition("/")[2].lower() for subject in subjects}
    return [r for r in REFERENCES if any(model.startswith(r.model) for model in models)]
