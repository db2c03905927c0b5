"""What latents mean and do, beside controls and published caveats, as `sae measure` left it in the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae.evaluation.semantic.results import SAE, Row, caveats_of
from sae.pictures.ranges import draw_ranges
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Probing and causal measures"
BETTER = {"absorption": "less"}
"""Family -> the better direction, where it is not more."""


def semantic(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """A figure for each family of measures and run, its caveat, and the tables of all tasks."""
    measured = {s: s.semantic for s in subjects if s.semantic}
    if not measured:
        if any(s.kind == "language" for s in subjects):
            page.leave_out(TITLE, "sae measure RUN")
        return
    page.section(
        TITLE,
        "What can be read from few latents, and what changes when they are removed or moved, on held-out texts, words "
        "or entities. Every number stands beside the same measure of controls, which have no learnt latents. "
        "k is how many latents (channels, components) are used.",
    )
    several = len(subjects) > 1
    for family, caveat in caveats_of(row for rows in measured.values() for row in rows).items():
        page.text(f"{family.capitalize()}: {caveat}")
        for subject, rows in measured.items():
            of_family = [row for row in rows if row.family == family]
            if not of_family:
                continue
            before = f"{subject.name}. " if several else ""
            name = f"semantic_{family}" + (f"_{subject.name.replace('/', '_')}" if several else "")
            page.illustrate(
                name,
                _figure(of_family),
                f"{before}{family.capitalize()}, {BETTER.get(family, 'more')} is better: a dot is the value, a line "
                "its 95% interval. Only the distance of the SAE from the controls (grey, hollow) is due to what its "
                "latents have learnt.",
            )
            for measure in dict.fromkeys(row.measure for row in of_family):
                title = f"{before}{measure.replace('.', ': ')}"
                page.fold(title, "By task; n are the held-out units behind a number.", _table(of_family, measure))


def _figure(rows: Sequence[Row]) -> Any:
    """A panel for each measure, with every task."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for measure in dict.fromkeys(row.measure for row in rows):
        for row in (row for row in rows if row.measure == measure):
            label = f"{row.task}" + ("" if row.k is None else f", k = {row.k}")
            interval = {"value": row.value, "low": row.low, "high": row.high}
            panels.setdefault(measure.partition(".")[2], {}).setdefault(row.subject, {})[label] = interval
    controls = frozenset(row.subject for row in rows if row.subject != SAE)
    return draw_ranges(panels, x="Value", controls=controls)


def _table(rows: Sequence[Row], measure: str) -> list[dict[str, Any]]:
    of = [row for row in rows if row.measure == measure]
    subjects = list(dict.fromkeys(row.subject for row in of))
    lines: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row in of:
        empty = {"task": row.task, "k": row.k, "n": row.n, **dict.fromkeys(subjects)}
        line = lines.setdefault((row.task, row.k), empty)
        line[row.subject] = {"value": row.value, "low": row.low, "high": row.high}
    return list(lines.values())
