"""Adam step, the reference."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from sae_kernels.formats.naive import STRIDE, expanded, store


class Adam(NamedTuple):
    """The numbers of one step: t from 1, learning rate, decay of both moments, and what is added to the root."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    numbers: Tensor | None = None
    """On a GPU the step's `numbers`, if the caller keeps them there."""


def fill_numbers(numbers: Tensor, adam: Adam) -> Tensor:
    """int32 [3] <- the bits of lr/(1-beta1^t) and 1/sqrt(1-beta2^t) in fp32, and the seed of the step's random bits.

    They are what changes from step to step. Kernels read them from memory, so that a CUDA graph that was captured at
    one step can be replayed at another. The host does not wait for the device.
    """
    step, lr, beta1, beta2 = adam[:4]
    seed = (step * STRIDE + 2**31) % 2**32 - 2**31
    parts = struct.unpack("<2i", struct.pack("<2f", lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)))
    for place, number in enumerate((*parts, seed)):
        numbers[place].fill_(number)
    return numbers


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`."""
    step, lr, beta1, beta2, eps, _ = adam
    old = expanded(param, "w")
    if scale is not None:
        grad = grad * scale
    if unit_rows:
        grad = grad - (grad * old).sum(1, keepdim=True) * old
    m_new = beta1 * expanded(m, "m").to(old.dtype) + (1 - beta1) * grad
    v_new = beta2 * expanded(v, "v").to(old.dtype) + (1 - beta2) * grad * grad
    update = (m_new / (1 - beta1**step)) / ((v_new / (1 - beta2**step)).sqrt() + eps)
    p_new = old - lr * update
    if unit_rows:
        p_new = p_new / p_new.norm(dim=1, keepdim=True).clamp_min(torch.finfo(p_new.dtype).tiny)
    # all three are written at the end, so that a scale of NaN (skip this step) leaves them unchanged
    keep = None if scale is None else ~torch.isfinite(scale)
    written = (
        (m, store(m_new, m, "m", step)),
        (v, store(v_new, v, "v", step)),
        (param, store(p_new, param, "w", step)),
    )
    for target, new in written:
        target.copy_(new if keep is None else torch.where(keep, target, new))
