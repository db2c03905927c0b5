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


def joined(rows: Sequence[Row]) -> list[Row]:
    """Fewer rows: of a variant the largest difference over its normalisations, of a refusal all its variants."""
    tools = list(dict.fromkeys(row.tool for row in rows))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (tools.index(row.tool), row.codes is None)):
        variant = row.case.partition(", ")[0]
        groups.setdefault((row.tool, f"refused: {row.note}" if row.codes is None else variant), []).append(row)
    result = []
    for group in groups.values():
        variants = list(dict.fromkeys(row.case.partition(", ")[0] for row in group))
        settings = list(dict.fromkeys(row.case.partition(", ")[2] for row in group))
        case = f"{', '.join(variants)} ({', '.join(settings)})"
        row = group[0]
        gaps = [None if row.codes is None else max(r[place] for r in group) for place in (3, 4)]
        result.append(row._replace(case=case, codes=gaps[0], reconstruction=gaps[1]))
    return result


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
