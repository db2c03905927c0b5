"""Interleaved timing, the speed of a large copy, and what the figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one function over interleaved rounds."""

    median: float
    fastest: float


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, Timing]:
    """Time every function once a round, so that a slow minute of the machine affects all of them alike.

    Two rounds are run before the first timed one, to compile and to warm up.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-2, rounds):
        for name, function in functions.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if turn >= 0:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
    return {name: Timing(sorted(times)[len(times) // 2], min(times)) for name, times in milliseconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_function(device: str, megabytes: int = 256) -> tuple[Callable[[], Any], int]:
    """A function that copies more than any cache holds, and the bytes that it reads and writes."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel() * 4


def machine(device: str) -> dict[str, Any]:
    """Processor, threads, load average and versions."""
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
