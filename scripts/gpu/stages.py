"""The stages of the GPU kit, each a function that yields rows; see kit.py, which runs them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from end_to_end import training
from setting import SHAPES, TOY_SHAPES, Row, Setting
from timed_steps import dense_step, rows_of, sparsify_step, timed_peer, timed_step

ROOT = Path(__file__).parents[2]


def machine(setting: Setting) -> Iterator[Row]:
    """What the device is, and its own rates: a large copy, and the vendor's matrix product in every precision."""
    import torch
    import triton

    from sae_kernels.bench.timing import copy_function, interleaved

    properties = torch.cuda.get_device_properties(0) if not setting.toy else None
    yield {
        "what": "device",
        "value": properties.name if properties else "the interpreter on a CPU",
        "memory GB": round(properties.total_memory / 2**30, 1) if properties else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    copy, copied = copy_function(setting.device, 1 if setting.toy else 2048)
    seconds = interleaved({"copy": copy}, setting.rounds, setting.device)["copy"].median / 1e3
    yield {"what": "copy, GB/s", "value": copied / seconds / 1e9}
    side = 64 if setting.toy else 8192
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        product = {"product": partial(torch.mm, a, b, out=torch.empty_like(a))}
        seconds = interleaved(product, setting.rounds, setting.device)["product"].median / 1e3
        yield {"what": f"matrix product in {name}, TFLOP/s", "value": 2 * side**3 / seconds / 1e12}


def steps(setting: Setting) -> Iterator[Row]:
    """A training step as `sae train` takes it, against its two floors, a dense PyTorch step and sparsify's."""
    for shape in TOY_SHAPES if setting.toy else SHAPES:
        x = rows_of(shape, setting)
        row = timed_step(shape, x, setting)
        yield row
        for name, make in (("dense PyTorch", dense_step), ("sparsify", sparsify_step)):
            row |= timed_peer(name, make, shape, x, setting)
            yield row


OPTIONS: dict[str, dict[str, Any]] = {
    "graphs off": {"graphs": "off"},
    "moments int8": {"moments": "int8"},
    "weights bfloat16, moments int8": {"weights": "bfloat16", "moments": "int8"},
    "moments bfloat16": {"moments": "bfloat16"},
}
"""Settings of the step beside the default, float32 state and, on a GPU, a CUDA graph."""


def options(setting: Setting) -> Iterator[Row]:
    """The same step with other formats of its state, and without CUDA graphs."""
    for shape in TOY_SHAPES if setting.toy else SHAPES:
        x = rows_of(shape, setting)
        # one is enough to show that the stage works, and a step takes seconds under the interpreter
        for name, optim in list(OPTIONS.items())[2:3] if setting.toy else OPTIONS.items():
            yield {"option": name, **timed_step(shape, x, setting, **optim)}


def kernels(setting: Setting) -> Iterator[Row]:
    """Every op at GPT-2 small's size, against the device's own copy and product."""
    from sae_kernels.bench.kernels import measure_kernels

    shape = TOY_SHAPES[0] if setting.toy else SHAPES[0]
    with setting.kernels():
        measured = measure_kernels(shape.tokens, shape.d, shape.width, shape.k, setting.rounds, setting.device)
    yield from measured["rows"]


def encoders(setting: Setting) -> Iterator[Row]:
    """Every encode with its fused product and with the vendor's, by the rule's launch parameters."""
    import torch

    from sae_kernels.bench.timing import interleaved
    from sae_kernels.launch import device_of
    from sae_kernels.tune import ENCODES, alternatives, runner

    for shape in TOY_SHAPES if setting.toy else SHAPES[:4]:
        x, W_enc = (
            torch.randn(rows, shape.d, device=setting.device).to(torch.float32 if setting.toy else torch.bfloat16)
            for rows in (shape.tokens, shape.width)
        )
        b_enc = torch.zeros(shape.width, device=setting.device)
        for op in ENCODES:
            fused, vendor = alternatives(op, *x.shape[:1], *W_enc.shape, shape.k, x.dtype, device_of(x))[:2]
            run = runner(op, x, W_enc, b_enc, shape.k)
            calls: dict[str, Callable[[], Any]] = {"fused": partial(run, fused), "vendor": partial(run, vendor)}
            times = interleaved(calls, setting.rounds, setting.device)
            row = {f"{name} ms": time.median for name, time in times.items()}
            yield {"op": op, **shape._asdict(), **row, "wins": min(times, key=lambda name: times[name].median)}


def tests(setting: Setting) -> Iterator[Row]:
    """The tests of the Triton kernels, on the device."""
    yield tested([], "device" if not setting.toy else "interpreter", "certificate" if setting.toy else "")


def memcheck(setting: Setting) -> Iterator[Row]:
    """The same tests at small shapes under compute-sanitizer, which sees every access outside a buffer."""
    sanitizer = shutil.which("compute-sanitizer")
    if setting.toy or sanitizer is None:
        yield {"what": "memcheck", "passed": None, "failed": None, "note": "no compute-sanitizer on this machine"}
        return
    yield tested([sanitizer, "--tool", "memcheck", "--error-exitcode", "9"], "memcheck", "reference and not random")


def tested(before: list[str], what: str, chosen: str) -> Row:
    """pytest over the kernels' tests in this process's mode, counted by its reports.

    Raises:
        SystemExit: a test failed; the row was written.
    """
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        note = "pytest or hypothesis is missing: scripts/gpu/pack.sh puts them into .gpu-packages"
        return {"what": what, "passed": None, "failed": None, "note": note}
    with tempfile.TemporaryFile("w+") as reports:
        # as tests/kernel_process.py runs them: in this process's mode, a JSON line a report
        environment = os.environ | {"SPARSIGHT_TEST_REPORTS": str(reports.fileno())}
        command = [*before, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts="]
        files = ["tests/ops/test_gpu_kernels.py"]
        if not chosen:
            files += ["tests/training/test_gpu_route.py", "tests/harvest/test_gpu_harvest.py"]
        command += [*(str(ROOT / file) for file in files), *(["-k", chosen] if chosen else [])]
        process = subprocess.run(command, env=environment, pass_fds=[reports.fileno()], cwd=ROOT, check=False)
        reports.seek(0)
        outcomes = [json.loads(line) for line in reports]
    passed = sum(report["when"] == "call" and report["outcome"] == "passed" for report in outcomes)
    failed = [report["nodeid"].partition("::")[2] for report in outcomes if report["outcome"] == "failed"]
    note = f"exit status {process.returncode}" if process.returncode else ""
    return {"what": what, "passed": passed, "failed": len(failed), "note": " ".join([note, *failed]).strip()}


STAGES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "machine": machine,
    "steps": steps,
    "training": training,
    "options": options,
    "encoders": encoders,
    "kernels": kernels,
    "tests": tests,
    "memcheck": memcheck,
}


def main() -> None:
    """Run one stage; its rows are written to OUT/STAGE.json as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    path = given.out / f"{given.stage}.json"
    rows: list[Row] = []
    if not given.toy and not gpu_is_there():
        sys.exit("no GPU: torch.cuda.is_available() is false; --toy runs the same stages under Triton's interpreter")
    for row in STAGES[given.stage](Setting(given.toy, given.seconds)):
        if not rows or rows[-1] is not row:
            rows.append(row)
        path.write_text(json.dumps({"rows": rows}, indent=1))
    path.write_text(json.dumps({"rows": rows, "status": "done"}, indent=1))
    if any(row.get("failed") for row in rows):
        sys.exit(f"{given.stage}: tests failed")


def gpu_is_there() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
