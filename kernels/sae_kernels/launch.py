"""The one way a Triton kernel is started: on the tensors' own device, with every compiler option said aloud.

    launch(_decode, (N, blocks), dict(values=values, ..., K=32), dict(BLOCK=256), warps=4)

Inside `recording(device)` nothing runs: the launchers are walked with tensors of the meta device and every launch is
noted instead. So `sae_kernels.aot` compiles exactly what a GPU would be given, at sizes that no memory has to hold.
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
    """Depth of the software pipeline over loops that hold a product."""


@dataclass
class Recorder:
    """What `recording` collects."""

    device: Device
    """The GPU that configurations are chosen for."""
    launches: list[Launch] = field(default_factory=list)
    """In order of launch."""


_recorders: list[Recorder] = []


@contextlib.contextmanager
def recording(device: Device) -> Iterator[Recorder]:
    """Note launches in place of running them; configurations are chosen for `device`."""
    recorder = Recorder(device)
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.pop()


def device_of(tensor: Tensor) -> Device:
    """The GPU that `tensor` lives on; under `recording` the one recorded for; H100 under Triton's interpreter."""
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
        note = Launch(
            kernel=kernel, grid=grid, arguments=dict(arguments), constants=constants, warps=warps, stages=stages
        )
        _recorders[-1].launches.append(note)
        return
    first = next(a for a in arguments.values() if isinstance(a, Tensor))
    # Triton launches on the current device, which need not be the tensors' device in a process with several
    guard = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    with guard:
        # fusion of multiply and add is said aloud: Triton 3.10 changes its default
        kernel[grid](**arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
