"""Adam step, the reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """The numbers of one step: t from 1, learning rate, decay of both moments, and what is added to the root."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`."""
    step, lr, beta1, beta2, eps = adam
    if scale is not None:
        grad = grad * scale
    if unit_rows:
        grad = grad - (grad * param).sum(1, keepdim=True) * param
    m_new = beta1 * m + (1 - beta1) * grad
    v_new = beta2 * v + (1 - beta2) * grad * grad
    update = (m_new / (1 - beta1**step)) / ((v_new / (1 - beta2**step)).sqrt() + eps)
    p_new = param - lr * update
    if unit_rows:
        p_new = p_new / p_new.norm(dim=1, keepdim=True).clamp_min(torch.finfo(p_new.dtype).tiny)
    # all three are written at the end, so that a scale of NaN (skip this step) leaves them unchanged
    keep = None if scale is None else ~torch.isfinite(scale)
    for target, new in ((m, m_new), (v, v_new), (param, p_new)):
        target.copy_(new if keep is None else torch.where(keep, target, new))
