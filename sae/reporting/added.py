"""Where the added cross-entropy arises: delta CE by position in the context and by class of the token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae.evaluation.tables import AddedTable, added_tables, same_fvu
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.ranges import draw_ranges
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Delta CE by position and token"
AXIS = "Delta CE (nats a token)"


def added(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """Figures and tables of delta CE by class, beside PCA with the run's FVU."""
    tables = {s: {table.partition: table for table in added_tables(s.numbers)} for s in subjects}
    tables = {s: of for s, of in tables.items() if of}
    if not tables:
        if any(s.kind == "language" for s in subjects):
            page.leave_out(TITLE, "sae eval RUN")
        return
    page.section(
        TITLE,
        "The loss that is added on average hides where it is added. Here the same tokens are sorted by how much the "
        "model has read, by the token read last, and by the token that is predicted. PCA with as many components as "
        "give the same FVU is the control: it makes errors of the same size in other directions.",
    )
    series = {s: _series(s, len(subjects) > 1) for s in tables}
    curves: dict[str, Curve] = {}
    for subject, of in tables.items():
        for name, column in series[subject].items():
            rows = of["position"].rows
            curves[name] = Curve([_last(row[of["position"].title]) for row in rows], [row[column] for row in rows])
    page.illustrate(
        "added_by_position",
        draw_lines(curves, "Tokens of the segment read (up to)", AXIS, log_x=True),
        "How much worse the model predicts with reconstructions in place, by the number of tokens it has read; bands "
        "are 95% intervals over documents. A curve that rises says that errors at earlier tokens add up.",
    )
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for subject, of in tables.items():
        for table in of.values():
            if table.partition != "position":
                for name, column in series[subject].items():
                    values = {row[table.title]: row[column] for row in table.rows}
                    panels.setdefault(table.title, {})[name] = values
    controls = frozenset(name for s in tables for name, column in series[s].items() if column != "delta CE")
    page.illustrate(
        "added_by_class",
        draw_ranges(panels, x=AXIS, controls=controls),
        "A dot is the mean over the tokens of a class, a line its 95% interval over documents; further right is worse, "
        "0 is no loss. A class far to the right of the others is what the reconstruction loses most of.",
    )
    for subject, of in tables.items():
        for table in of.values():
            before = f"{subject.name}. " if len(subjects) > 1 else ""
            page.fold(f"{before}{table.title}", f"Classes: {table.meaning}.", table.rows)


def _series(subject: Subject, several: bool) -> dict[str, str]:
    """Name of a series -> its column in `AddedTable.rows`: the run, and the control with its FVU."""
    control, table = same_fvu(subject.numbers), _first(subject.numbers)
    series = {subject.name: "delta CE"}
    if control in table.rows[0]:
        series[f"{subject.name}: {control}" if several else str(control)] = str(control)
    return series


def _first(numbers: Mapping[str, Any]) -> AddedTable:
    return added_tables(numbers)[0]


def _last(label: str) -> int:
    """The last position of a class such as "5 to 8"."""
    return int(label.rpartition(" ")[2].replace(",", ""))
