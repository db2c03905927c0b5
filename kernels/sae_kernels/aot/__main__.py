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
    """Compile, print both tables, return 1 where some code is unfit."""
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
    """A row a kernel and GPU: what its code needs."""
    table = Table(title="Machine code")
    for name in ("GPU", "kernel", "dtype", "warps", "stages", "constants", "faults"):
        table.add_column(name, overflow="fold")
    for name in ("registers", "spills", "stack", "shared", "tensor", "wide"):
        table.add_column(name, justify="right")
    for c in compiled:
        k = c.code
        numbers = (k.registers, k.spills, k.stack, k.shared, k.tensor_core, k.wide)
        words = (c.arch, c.kernel, c.dtype, str(c.warps), str(c.stages), c.constants, "; ".join(c.faults) or "none")
        table.add_row(*words, *map(str, numbers), style="red" if c.faults else None)
    return table


def cost_table(modelled: list[Modelled]) -> Table:
    """A row an op, size and GPU: bytes and time beside their floors."""
    table = Table(title="Modelled cost, 8192 tokens (time: the longer of bytes and operations, launch by launch)")
    for name in ("GPU", "op", "dtype"):
        table.add_column(name)
    for name in ("d", "F", "k", "GB", "floor GB", "bytes/floor", "TFLOP", "ms", "floor ms", "time/floor"):
        table.add_column(name, justify="right")
    for m in modelled:
        table.add_row(
            *(
                m.arch,
                m.op,
                m.dtype,
                str(m.d),
                str(m.F),
                str(m.k),
                f"{m.bytes / 1e9:.3f}",
                f"{m.floor_bytes / 1e9:.3f}",
            ),
            *(f"{m.ratio:.2f}", f"{m.operations / 1e12:.2f}", f"{m.ms:.3f}", f"{m.floor_ms:.3f}"),
            f"{m.ms / m.floor_ms:.2f}",
            style="yellow" if m.ratio > 1.2 else None,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
