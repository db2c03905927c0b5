"""Every measure with its meaning, and where the runs come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae.evaluation.words import described
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject


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
