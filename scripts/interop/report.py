"""What `make interop` prints, and the tables that it fills in docs/interop.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One cell of the table."""

    tool: str
    case: str
    direction: str
    """"theirs, read by us" or "ours, read by them"."""
    codes: float | None
    """Largest difference of codes over the largest code; None where one side refuses."""
    reconstruction: float | None
    note: str = ""
    """Why it is refused, or what else is to know."""

    @property
    def largest(self) -> float:
        """The larger one of both differences."""
        return max(self.codes or 0.0, self.reconstruction or 0.0)


class Pair(NamedTuple):
    """Two tools on the same weights and inputs."""

    one: str
    """Tool/case."""
    other: str
    codes: float
    reconstruction: float
    verdict: str
    """"equal", or why they differ and which is right."""


def joined(rows: list[Row]) -> list[Row]:
    """Rows of one variant, tool and reason as one, with the normalisations in brackets and the largest difference."""
    groups: dict[tuple[str, str, str, bool, str], list[Row]] = {}
    for row in rows:
        variant = row.case.partition(", ")[0]
        groups.setdefault((row.tool, variant, row.direction, row.codes is None, row.note), []).append(row)
    result = []
    order = list(dict.fromkeys(row.tool for row in rows))
    for (tool, variant, direction, refused, note), group in groups.items():
        settings = [row.case.partition(", ")[2] for row in group if ", " in row.case]
        case = f"{variant} ({', '.join(settings)})" if settings else variant
        gaps = (
            (None, None)
            if refused
            else (max(r.codes or 0.0 for r in group), max(r.reconstruction or 0.0 for r in group))
        )
        result.append(Row(tool, case, direction, *gaps, note))
    return sorted(result, key=lambda row: order.index(row.tool))


def shown(row: Row | Pair) -> str:
    """A line of the printed table."""
    gaps = " ".join(f"{gap:>9}" for gap in _gaps(row))
    if isinstance(row, Pair):
        return f"{row.one:40} {row.other:40} {gaps}  {row.verdict}"
    return f"{row.tool:20} {row.case:54} {row.direction:19} {gaps}  {row.note}".rstrip()


def document(
    path: Path, theirs: Sequence[Row], pairs: Sequence[Pair], ours: Sequence[Row], summary: dict[str, Any]
) -> None:
    """Write the tables into the document, each between `<!-- NAME -->` and `<!-- end -->`."""
    first = ("tool", "case", "codes", "reconstruction", "note")
    cells = [[(row.tool, row.case, *_gaps(row), row.note) for row in rows] for rows in (theirs, ours)]
    parts = {
        "theirs": _table(first, cells[0]),
        "ours": _table(first, cells[1]),
        "pairs": _table(
            ("one", "other", "codes", "reconstruction", "which is right"),
            [(pair.one, pair.other, *_gaps(pair), pair.verdict) for pair in pairs],
        ),
        "summary": f"{summary['compared']} comparisons, largest difference {summary['largest_difference']:.1e}; "
        f"{summary['refused']} refusals.",
    }
    text = path.read_text()
    for name, part in parts.items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{head}<!-- {name} -->\n{part}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    path.write_text(text)


def _gaps(row: Row | Pair) -> list[str]:
    return ["refused" if gap is None else f"{gap:.1e}" for gap in (row.codes, row.reconstruction)]


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(names), ["---"] * len(list(names)), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
