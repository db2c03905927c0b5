"""Adam step, the reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STRIDE = 0x9E3779B1
"""Distance of the places of two steps, in `noise`."""


class Adam(NamedTuple):
    """The numbers of one step: t from 1, learning rate, decay of both moments, and what is added to the root."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float


def noise(size: int, step: int, device: torch.device) -> Tensor:
    """32 random bits for each of `size` elements at a step, the same on every backend, int64 in [0, 2^32).

    A hash of place and step: lowbias32 (C. Wellons, hash-prospector, 2018).
    """
    mask = 0xFFFFFFFF
    bits = (torch.arange(size, device=device) + step * STRIDE) & mask
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & mask
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & mask
    return bits ^ (bits >> 16)


def rounded(values: Tensor, bits: Tensor) -> Tensor:
    """fp32 values to one of the two neighbouring bf16 numbers, at random, so that the mean is kept.

    `bits` are 16 random bits an element, int64. A moment in bf16 needs this: the second changes by a thousandth of
    itself in a step, and rounding to the nearest number would leave it where it is.
    """
    whole = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    short = ((whole + bits.view(values.shape)) >> 16) & 0xFFFF
    return torch.where(short < 1 << 15, short, short - (1 << 16)).to(torch.int16).view(torch.bfloat16)


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`."""
    step, lr, beta1, beta2, eps = adam
    if scale is not None:
        grad = grad * scale
    if unit_rows:
        grad = grad - (grad * param).sum(1, keepdim=True) * param
    m_new = beta1 * m.to(param.dtype) + (1 - beta1) * grad
    v_new = beta2 * v.to(param.dtype) + (1 - beta2) * grad * grad
    update = (m_new / (1 - beta1**step)) / ((v_new / (1 - beta2**step)).sqrt() + eps)
    p_new = param - lr * update
    if unit_rows:
        p_new = p_new / p_new.norm(dim=1, keepdim=True).clamp_min(torch.finfo(p_new.dtype).tiny)
    if m.dtype == torch.bfloat16:
        bits = noise(m.numel(), step, m.device)
        m_new, v_new = rounded(m_new, bits & 0xFFFF), rounded(v_new, bits >> 16)
    # all three are written at the end, so that a scale of NaN (skip this step) leaves them unchanged
    keep = None if scale is None else ~torch.isfinite(scale)
    for target, new in ((m, m_new), (v, v_new), (param, p_new)):
        target.copy_(new if keep is None else torch.where(keep, target, new))
