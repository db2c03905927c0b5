"""What every stage of the GPU kit is given: the device, the time limit, and the sizes of a training step."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

Row = dict[str, Any]


class Shape(NamedTuple):
    """One size of a training step."""

    model: str
    tokens: int
    d: int
    width: int
    k: int


SHAPES = (
    Shape("GPT-2 small", 8192, 768, 24_576, 32),
    Shape("GPT-2 small", 8192, 768, 131_072, 32),
    Shape("Gemma 2 2B", 4096, 2304, 65_536, 64),
    Shape("Llama 3 8B", 4096, 4096, 131_072, 64),
    Shape("Llama 3 8B, large batch", 16_384, 4096, 131_072, 64),
)
TOY_SHAPES = (Shape("toy", 33, 20, 131, 3),)


class Setting(NamedTuple):
    """Where and how large a stage runs."""

    toy: bool
    seconds: float
    """Its time limit."""

    @property
    def device(self) -> str:
        """The GPU; with `toy` the CPU, where Triton interprets."""
        return "cpu" if self.toy else "cuda"

    @property
    def rounds(self) -> int:
        """Timed rounds of each function."""
        return 1 if self.toy else 9

    def kernels(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the ops run their Triton kernels on this device."""
        from sae_kernels import use_backend

        return use_backend("gpu") if self.toy else contextlib.nullcontext()


def peak_memory(setting: Setting) -> int | None:
    """Bytes at the peak since the last call; None without a GPU."""
    if setting.toy:
        return None
    import torch

    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
