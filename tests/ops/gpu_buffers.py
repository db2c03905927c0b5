"""NaN guard bands: Triton's interpreter reads and writes outside a buffer without complaint, these do not.

    with guarded_allocations():
        values, indices = topk_encode(guarded(x), guarded(W_enc), ...)

Everything the launcher allocates inside the block lies between two bands of poison and starts as poison itself: what
is read outside a buffer or before it is written shows in the results, and a band that changed raises at the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# a multiple of 16 bytes in every dtype, so that pointers stay aligned as fresh allocations are
BAND = 64
_POISON = {torch.uint8: 0xA5, torch.int16: -7, torch.int32: -7, torch.int64: -7, torch.bool: True}


def guarded(tensor: Tensor) -> Tensor:
    """A contiguous copy of `tensor` between two bands of NaN (-7 for integers)."""
    view, _ = _allocate(tuple(tensor.shape), tensor.dtype, tensor.device)
    return view.copy_(tensor)


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """Put bands around everything that torch.empty, empty_like and new_empty allocate; check them at the end."""
    buffers: list[Tensor] = []
    plain = torch.empty, torch.empty_like, Tensor.new_empty

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
        view, whole = _allocate(shape, dtype, device)
        buffers.append(whole)
        return view

    def empty(*shape: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu", **_: Any) -> Tensor:
        return allocate(_shape(shape), dtype, device)

    def empty_like(tensor: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return allocate(tuple(tensor.shape), dtype or tensor.dtype, tensor.device)

    def new_empty(tensor: Tensor, *shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return allocate(_shape(shape), dtype or tensor.dtype, tensor.device)

    torch.empty, torch.empty_like, Tensor.new_empty = empty, empty_like, new_empty  # pyright: ignore
    try:
        yield
    finally:
        torch.empty, torch.empty_like, Tensor.new_empty = plain  # pyright: ignore
    for whole in buffers:
        for band in (whole[:BAND], whole[whole.shape[0] - BAND :]):
            intact = band.isnan() if band.is_floating_point() else band == _POISON[band.dtype]
            if not intact.all():
                raise AssertionError(f"something wrote outside a buffer of {whole.shape[0] - 2 * BAND} {whole.dtype}")


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> tuple[Tensor, Tensor]:
    """(the view of this shape, the whole buffer), all poison."""
    size = math.prod(shape)
    whole = torch.full((size + 2 * BAND,), _POISON.get(dtype, math.nan), dtype=dtype, device=device)
    return whole[BAND : BAND + size].view(shape), whole
