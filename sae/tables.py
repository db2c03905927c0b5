"""Tables for people, from the same dicts that --json prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def render(result: dict[str, Any]) -> Table:
    """Two columns: name and value, nested names joined by dots; intervals as `value [low, high]`."""
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
            rows.append((prefix + name, ", ".join(map(number, value))))
        else:
            rows.append((prefix + name, number(value)))
    return rows
