"""CPU memory that is reused between calls.

A fresh large array costs a page fault for every 4 KiB touched, which would be a fifth of a training step. Ops use
`scratch`, one workspace a thread, for temporary arrays. A caller that wants the results themselves in reused memory
passes its own `Workspace`.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class Workspace:
    """Named buffers, allocated at their first use and again only when a larger one is needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised CPU tensor of this shape; two calls with one name share memory."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)


_local = threading.local()


def scratch() -> Workspace:
    """The workspace of the calling thread."""
    if not hasattr(_local, "workspace"):
        _local.workspace = Workspace()
    return _local.workspace
