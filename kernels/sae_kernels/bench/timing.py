"""Interleaved timing, the machine's own ceilings, and how results are shown."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one function over interleaved rounds."""

    median: float
    fastest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.fastest:.2f})"


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, Timing]:
    """Time every function once a round, so that a slow minute of the machine falls on all of them alike.

    Two rounds before the first counted one compile and warm up.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for counted in range(-2, rounds):
        for name, function in functions.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if counted >= 0:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: Timing(sorted(times)[len(times) // 2], min(times)) for name, times in taken.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_function(device: str, megabytes: int = 256) -> tuple[Callable[[], Any], int]:
    """A copy too large for any cache, and the bytes it reads and writes."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel() * 4


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def show(result: Mapping[str, Any], title: str, columns: Sequence[str], as_json: bool) -> None:
    """`result["rows"]` as a table for people, then everything as one JSON line; the line alone with as_json."""
    if not as_json:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, caption=", ".join(f"{key} {value}" for key, value in result["machine"].items()))
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for row in result["rows"]:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(table)
        for key, value in result.items():
            if key not in ("rows", "machine"):
                console.print(f"{key}: {_cell(value)}")
    print(json.dumps(result, default=asdict))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
