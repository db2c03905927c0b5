"""The one function that starts a Triton kernel: on the tensors' own device, with every compiler option explicit.

    launch(_decode, (N, blocks), dict(values=values, ..., K=32), dict(BLOCK=256), warps=4)

Inside `recording(device)` nothing runs: the ops are called on tensors of the meta device, and every launch is recorded
instead. So `sae_kernels.aot` compiles exactly what a GPU would run, at any size, without memory for the tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_kernels.tuning import Device, named_device


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of one kernel."""

    kernel: Any
    """The triton.jit function."""
    grid: tuple[int, ...]
    """Programs along each axis."""
    arguments: Mapping[str, Any]
    """Run-time arguments by name: tensors and numbers."""
    constants: Mapping[str, Any]
    """Compile-time arguments by name."""
    warps: int
    """Warps a program."""
    stages: int
    """Depth of the software pipeline of loops around a matrix product."""


@dataclass
class Recorder:
    """The launches inside one `recording`."""

    device: Device
    """The GPU for which launch parameters are picked."""
    launches: list[Launch] = field(default_factory=list)


_recorders: list[Recorder] = []


@contextlib.contextmanager
def recording(device: Device) -> Iterator[Recorder]:
    """Record launches instead of running them, with the launch parameters for `device`."""
    recorder = Recorder(device)
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.pop()


def device_of(tensor: Tensor) -> Device:
    """The GPU of `tensor`; inside `recording` its device; an H100 under Triton's interpreter."""
    if _recorders:
        return _recorders[-1].device
    return named_device(tensor.device)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    *,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """Start `kernel` over `grid`; a grid with a zero starts nothing (an empty batch)."""
    if 0 in grid:
        return
    if _recorders:
        record = Launch(
            kernel=kernel, grid=grid, arguments=dict(arguments), constants=constants, warps=warps, stages=stages
        )
        _recorders[-1].launches.append(record)
        return
    first = next(a for a in arguments.values() if isinstance(a, Tensor))
    # Triton launches on the current device, which in a process with several GPUs may not be the tensors'
    guard = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    with guard:
        # explicit, since Triton 3.10 changes the default of enable_fp_fusion
        kernel[grid](**arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
