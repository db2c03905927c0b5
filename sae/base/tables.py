"""Tables for people, from the same dicts that --json prints."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def render(result: dict[str, Any]) -> Group:
    """Names and values, nested names joined by dots, intervals as `value [low, high]`; a list of dicts as a table."""
    plain = {name: value for name, value in result.items() if not _is_table(value)}
    return Group(*(_table(value) for value in result.values() if _is_table(value)), _listing(plain))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


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


def number(value: Any) -> str:
    """A number in four significant digits, an integer with separators, anything else as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in result.items():
        if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
            rows.append((prefix + name, f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"))
        elif isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            words = any(isinstance(item, str) for item in value)
            rows.append((prefix + name, ("\n" if words else ", ").join(map(number, value))))
        else:
            rows.append((prefix + name, number(value)))
    return rows
