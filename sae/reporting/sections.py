"""The sections of a report, in the order in which they are read; each leaves itself out where it has nothing to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae.base.tables import number
from sae.evaluation.words import described, value_at
from sae.pictures.charts import draw_histograms
from sae.pictures.lines import Curve, draw_lines
from sae.reporting.figures import IllustratedPage
from sae.reporting.references import REFERENCES
from sae.reporting.subjects import Subject, nearest_cosines, random_atoms

COLUMNS = {
    "fvu": "FVU",
    "l0": "L0",
    "dead": "dead",
    "cosine": "cosine",
    "downstream.delta_ce": "delta CE",
    "downstream.ce_recovered_zero": "CE recovered (zero)",
    "downstream.ce_recovered_mean": "CE recovered (mean)",
}
"""Key in eval.json -> head of the column, for runs and controls."""
CURVES = {"fvu": "FVU", "l0": "L0", "dead": "Dead latents, share"}
"""Key in metrics.jsonl -> name of the axis."""
SPREAD = 10
"""Largest FVU over the smallest from which on the axis is logarithmic."""
STILL = 1e-3
"""Spread of a curve, as a share of its largest value, up to which it is told and not drawn."""
POINTS = 400
"""Points of a training curve that are drawn."""


def overview(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The runs and their controls in one table, and the plane of FVU over L0."""
    page.section(
        "Numbers and controls",
        "Every number is measured on documents held out of training, on the saved weights; brackets are 95% intervals "
        "over documents. A number means something only beside its controls: what a method without the learnt latents "
        "reaches on the same tokens.",
    )
    rows = [{"name": s.name, **_columns(s.numbers)} for s in subjects]
    for subject in subjects:
        before = f"{subject.name}: " if len(subjects) > 1 else ""
        rows += [{"name": before + name, **_columns(values)} for name, values in controls_of(subject.numbers).items()]
    page.table([{name: row.get(name) for name in ("name", *COLUMNS.values())} for row in rows])
    page.illustrate(
        "fvu_over_l0",
        draw_fidelity({s.name: [s.numbers] for s in subjects}, {"": [s.numbers for s in subjects]}),
        "Share of the variance that is not explained, over the number of active latents; lower and further left is "
        "better. PCA is drawn with as many components as the run has active latents, and with as many as it needs for "
        "the run's FVU.",
    )


def controls_of(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The controls of an eval.json by name, with the numbers that each has; of an older one those of its baselines."""
    if rows := numbers.get("controls"):
        return {row["control"]: row for row in rows}
    baselines: dict[str, Any] = numbers.get("baselines") or {}
    controls: dict[str, dict[str, Any]] = {}
    if "pca_fvu" in baselines:
        k = baselines["pca_components"]
        controls[f"PCA, {k} components"] = {"fvu": baselines["pca_fvu"], "l0": k}
    if same := baselines.get("pca_components_for_same_fvu"):
        controls[f"PCA, {same} components"] = {"fvu": numbers["fvu"], "l0": same}
    if "mean_fvu" in baselines:
        controls["the training mean"] = {"fvu": baselines["mean_fvu"], "l0": 0}
    return controls


def _columns(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {head: value_at(dict(numbers), key) for key, head in COLUMNS.items()}


def draw_fidelity(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], places: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Figure:
    """FVU over L0 of evaluations (eval.json), beside as many principal components of the activations.

    Args:
        runs: name of a line -> its evaluations, joined in the order of their L0.
        places: site -> evaluations of what is reconstructed there, whose controls give the line of components.
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
    shown = [value for curve in curves.values() for value in map(_middle, curve.y)]
    far = 0 < min(shown) < max(shown) / SPREAD
    return draw_lines(curves, "L0 (active latents a token, or components)", "FVU", log_x=True, log_y=far)


def _middle(value: Any) -> float:
    return float(value["value"] if isinstance(value, Mapping) else value)


def references(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Published numbers on the runs' language models."""
    models = {str(_language_model(s)).rpartition("/")[2].lower() for s in subjects}
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
        for r in REFERENCES
        if r.model in models or any(model.startswith(r.model) for model in models)
    ]
    if rows:
        page.section(
            "Published on the same language model",
            "As their authors report them, on their own text and with their own definitions; for orientation alone.",
        )
        page.table(rows)


def _language_model(subject: Subject) -> str | None:
    return ((subject.record.get("train") or {}).get("harvest") or {}).get("model")


def measures(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Every number of the evaluation with its meaning."""
    page.section("Every measure")
    named: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        for measure in described(subject.numbers, subject.kind):
            row = named.setdefault(measure.name, {"measure": measure.name})
            row[subject.name] = measure.value
            row["meaning"] = measure.meaning
    names = ["measure", *(s.name for s in subjects), "meaning"]
    page.table([{name: row.get(name) for name in names} for row in named.values()])


def training(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The course of the training."""
    logged = [s for s in subjects if len(s.metrics) > 1]
    if not logged:
        return
    page.section("Training", "Means over the steps between two lines of metrics.jsonl, on the training batches.")
    for key, label in CURVES.items():
        curves = {}
        for subject in logged:
            lines = [line for line in subject.metrics if line.get(key) is not None]
            lines = lines[:: max(1, len(lines) // POINTS)]
            curves[subject.name] = Curve([line[subject.unit] for line in lines], [line[key] for line in lines], "-")
        values = [value for curve in curves.values() for value in curve.y]
        if max(values) - min(values) <= STILL * max(values):
            page.text(f"{label} stayed at {number(float(values[-1]))}.")
            continue
        unit = " or ".join(dict.fromkeys(s.unit for s in logged))
        page.illustrate(
            f"training_{key}", draw_lines(curves, f"Training {unit}", label), f"{label} while it was trained."
        )


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
    page.illustrate("densities", draw_lines(curves, "log10 of the firing rate", "Latents"), f"{never}.")


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
        nearest = nearest_cosines(subject.model.dictionary.W.detach())
        histograms[subject.name] = nearest.numpy()
        duplicates.append(f"{subject.name}: median {nearest.median():.3f}, {int((nearest > 0.9).sum()):,} over .9")
    shapes = {tuple(s.model.dictionary.W.shape): s for s in subjects}
    for (latents, dim), subject in shapes.items():
        control = nearest_cosines(random_atoms(subject.model.dictionary.W))
        histograms[f"random, {latents:,} in {dim:,} dimensions"] = control.numpy()
    figure = draw_histograms(histograms, x="Largest |cosine| with another atom", y="Share of latents")
    page.illustrate("nearest_cosines", figure, "; ".join(duplicates) + ".")


def provenance(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Where every run comes from, so that it can be made again."""
    page.section("Provenance")
    facts: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        for name, value in _facts(subject).items():
            facts.setdefault(name, {"": name})[subject.name] = value
    names = ["", *(s.name for s in subjects)]
    page.table([{name: row.get(name) for name in names} for row in facts.values()])


def _facts(subject: Subject) -> dict[str, str]:
    record, train = subject.record, subject.record.get("train") or {}
    harvest, optim = train.get("harvest") or {}, train.get("optim") or {}
    imported, description = record.get("imported") or {}, record.get("autoencoder") or {}
    training, data = record.get("training") or {}, record.get("data") or {}
    versions = record.get("versions") or {}
    model = record.get("model") if isinstance(record.get("model"), dict) else {}
    facts = {
        "Variant": subject.variant,
        "Latents, width": f"{subject.model.width:,}, {subject.model.dim:,}",
        "Language model": harvest.get("model"),
        "Its revision": (model or {}).get("revision"),
        "Site": subject.numbers.get("site"),
        "Training data": harvest.get("dataset") or data.get("name"),
        "Evaluated on": subject.numbers.get("dataset"),
        f"Training {subject.unit}": None if subject.samples is None else f"{subject.samples:,}",
        "Steps, batch": f"{training['steps']:,}, {training['batch']:,}" if "steps" in training else None,
        "Learning rate": None if training.get("lr") is None else f"{training['lr']:.3g}",
        "Optimizer": optim.get("optimizer"),
        "Route": training.get("route"),
        "Seed": None if train.get("seed") is None else str(train["seed"]),
        "Imported from": imported.get("source"),
        "Weights, SHA-256": str(description.get("sha256", ""))[:16] or None,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return {name: value for name, value in facts.items() if value is not None}
