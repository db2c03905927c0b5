"""python -m sae_kernels.aot [--arch sm_90 ...] [--dtype bfloat16 ...] [--json]"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sae_kernels.aot.cases import all_cases
from sae_kernels.aot.check import Compiled, Modelled, compile_case, model_case, report
from sae_kernels.tuning import DEVICES


def main(arguments: list[str] | None = None) -> int:
    """Compile and print both tables; returns 1 if the code of any kernel has a fault."""
    parser = argparse.ArgumentParser(prog="python -m sae_kernels.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=list(DEVICES), default=list(DEVICES))
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout, the tables on stderr")
    options = parser.parse_args(arguments)
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 180)
    cases = all_cases(tuple(getattr(torch, name) for name in options.dtype))
    seen: dict[str, Compiled] = {}
    work = [(case, arch) for arch in options.arch for case in cases]
    for case, arch in track(work, "compiling", console=Console(stderr=True)):
        compile_case(case, arch, seen)
    compiled, modelled = list(seen.values()), [model_case(case, arch) for case, arch in work]
    console.print(code_table(compiled))
    console.print(cost_table(modelled))
    if options.json:
        print(json.dumps(report(compiled, modelled)))
    return int(any(c.faults for c in compiled))


def code_table(compiled: list[Compiled]) -> Table:
    """A row a kernel and GPU: the resources of its machine code."""
    rows = []
    for c in compiled:
        words = (c.arch, c.kernel, c.dtype, c.warps, c.stages, c.constants, "; ".join(c.faults) or "none")
        k = c.code
        rows.append((*words, k.registers, k.spills, k.stack, k.shared, k.tensor_core, k.wide))
    names = "GPU kernel dtype warps stages constants faults registers spills stack shared tensor wide"
    return _table("Machine code", names, rows, ["red" if c.faults else None for c in compiled])


def cost_table(modelled: list[Modelled]) -> Table:
    """A row an op, size and GPU: bytes and time beside their floors."""
    rows = []
    for m in modelled:
        sizes = (f"{m.bytes / 1e9:.3f}", f"{m.floor_bytes / 1e9:.3f}", f"{m.ratio:.2f}", f"{m.operations / 1e12:.2f}")
        times = (f"{m.ms:.3f}", f"{m.floor_ms:.3f}", f"{m.ms / m.floor_ms:.2f}")
        rows.append((m.arch, m.op, m.dtype, m.d, m.F, m.k, *sizes, *times))
    names = "GPU op dtype d F k GB floor_GB bytes/floor TFLOP ms floor_ms time/floor"
    title = "Modelled cost, 8192 tokens (time: the longer of bytes and operations, launch by launch)"
    return _table(title, names, rows, ["yellow" if m.ratio > 1.2 else None for m in modelled])


def _table(title: str, names: str, rows: list[tuple], styles: list[str | None]) -> Table:
    table = Table(title=title)
    for name, value in zip(names.split(), map(str, rows[0]), strict=True):
        number = value.replace(".", "", 1).isdigit()
        table.add_column(name.replace("_", " "), overflow="fold", justify="right" if number else "left")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*map(str, row), style=style)
    return table


if __name__ == "__main__":
    sys.exit(main())
