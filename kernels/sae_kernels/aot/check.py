"""Faults of compiled code, and the results of a compilation and of the cost model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from sae_kernels.aot.cases import OPS, Case
from sae_kernels.aot.compile import Code, code_key, compile_launch
from sae_kernels.aot.model import Work, work
from sae_kernels.launch import Launch
from sae_kernels.tuning import DEVICES, Device

PRODUCTS = ("_candidates", "_survivors")
"""Kernels whose product must run on tensor cores."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel compiled for one GPU."""

    arch: str
    kernel: str
    dtype: str
    """Of the op's inputs."""
    warps: int
    stages: int
    constants: str
    """Compile-time arguments."""
    used: str
    """The first op and size that launch it."""
    code: Code
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """One op at one size on one GPU, by the cost model."""

    op: str
    arch: str
    dtype: str
    d: int
    F: int
    k: int
    bytes: float
    """Moved by all launches and the torch operations between them."""
    floor_bytes: float
    operations: float
    ms: float
    """Modelled: every launch at the longer of its bytes and its operations."""
    floor_ms: float

    @property
    def ratio(self) -> float:
        """Bytes over their floor."""
        return self.bytes / self.floor_bytes


def faults(launch: Launch, code: Code, device: Device) -> tuple[str, ...]:
    """What is wrong with a kernel's code on `device`, in words; empty if nothing is."""
    messages = []
    if code.spills or code.stack:
        messages.append(f"{code.spills} local-memory instructions, {code.stack} bytes of stack: registers spill")
    if code.shared > device.shared:
        messages.append(f"{code.shared} bytes of shared memory, over the limit of {device.shared}")
    exact_fp32 = launch.constants.get("PRECISION") == "ieee" and launch.arguments["x"].element_size() == 4
    if launch.kernel.__name__ in PRODUCTS and code.tensor_core == 0 and not exact_fp32:
        messages.append("a product without tensor-core instructions")
    return tuple(messages)


def compile_case(case: Case, arch: str, seen: dict[str, Compiled]) -> None:
    """Compile the launches of a case that are not in `seen` yet, and add them."""
    for launch in case.record(DEVICES[arch]):
        key = code_key(launch, arch)
        if key not in seen:
            code = compile_launch(launch, arch)
            seen[key] = Compiled(
                arch=arch,
                kernel=launch.kernel.__name__.lstrip("_"),
                dtype=str(case.dtype).removeprefix("torch."),
                warps=launch.warps,
                stages=launch.stages,
                constants=" ".join(f"{name}={value}" for name, value in launch.constants.items()),
                used=f"{case.op} d={case.d} F={case.F}",
                code=code,
                faults=faults(launch, code, DEVICES[arch]),
            )


def model_case(case: Case, arch: str) -> Modelled:
    """Bytes, operations and time of a case beside its floors."""
    device, op = DEVICES[arch], OPS[case.op]
    works = [work(launch, case.entries) for launch in case.record(device)]
    exact = case.dtype == torch.float32
    between = Work(op.torch_bytes(case), op.torch_operations(case), exact)
    operations = sum(w.operations for w in works) + between.operations
    floor = op.floor(case)
    return Modelled(
        op=case.op,
        arch=arch,
        dtype=str(case.dtype).removeprefix("torch."),
        d=case.d,
        F=case.F,
        k=case.k,
        bytes=sum(w.bytes for w in works) + between.bytes,
        floor_bytes=floor,
        operations=operations,
        ms=1e3 * (sum(w.seconds(device) for w in works) + between.seconds(device)),
        floor_ms=1e3 * Work(floor, operations, exact).seconds(device),
    )


def report(compiled: list[Compiled], modelled: list[Modelled]) -> dict:
    """Everything as one JSON object."""
    return {
        "kernels": [asdict(c) for c in compiled],
        "ops": [asdict(m) | {"ratio": m.ratio} for m in modelled],
        "faults": sum(bool(c.faults) for c in compiled),
        "worst_ratio": max((m.ratio for m in modelled), default=None),
    }
