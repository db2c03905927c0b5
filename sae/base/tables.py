"""Tables for people, from the same dicts that --json prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def render(result: dict[str, Any]) -> Group:
    """Names and values, nested names joined by dots, intervals as `value [low, high]`; a list of dicts as a table."""
    plain = {name: value for name, value in result.items() if not _is_table(value)}
    return Group(*(_Rows(value) for value in result.values() if _is_table(value)), _listing(plain))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


class _Rows:
    """Dicts as a table; where it is too wide, each in two lines, its first value above the others, so that none is cut.

    Args:
        rows: with the same names.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(self.rows)
        if Measurement.get(console, options.update(width=10**6), table).maximum <= options.max_width:
            yield table
            return
        for row in self.rows:
            first, *others = (number(value) for value in row.values())
            yield Text(first, style="bold", overflow="fold")
            yield Padding("  ".join(others), (0, 0, 0, 2))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(number(row.get(name)) for name in rows[0]))
    return table


def _listing(result: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def is_interval(value: Any) -> bool:
    """Whether a value is a number with its bounds."""
    return isinstance(value, dict) and set(value) == {"value", "low", "high"}


def number(value: Any) -> str:
    """A number in four digits, or whole from 10,000 on; an integer with separators; an interval as `value [low, high]`.

    All else is shown as it is. An interval is {"value", "low", "high"}; one without bounds is its value alone.
    """
    if is_interval(value):
        bounds = "" if value["low"] is None else f" [{number(value['low'])}, {number(value['high'])}]"
        return number(value["value"]) + bounds
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same names as a table in Markdown, which ends with a line break; "" for none."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_in_one_line(row[name]) for name in rows[0]] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _in_one_line(value: Any) -> str:
    return number(value).replace("\n", " ").replace("|", "\\|")


def _rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in result.items():
        if isinstance(value, dict) and not is_interval(value):
            rows += _rows(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            words = any(isinstance(item, str) for item in value)
            rows.append((prefix + name, ("\n" if words else ", ").join(map(number, value))))
        else:
            rows.append((prefix + name, number(value)))
    return rows
