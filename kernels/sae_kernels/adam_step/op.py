"""adam_step: the optimizer's pass over one parameter and its two moments."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.adam_step import naive
from sae_kernels.dispatch import choose

IMPLEMENTATIONS = {
    "naive": naive.adam_step,
    "cpu": "sae_kernels.adam_step.cpu:adam_step",
    "gpu": "sae_kernels.adam_step.gpu:adam_step",
}


def adam_step(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 6.25e-10,
    scale: Tensor | None = None,
    unit_rows: bool = False,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), in place on `param`, `m` and `v`.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g²;  param <- param - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)

    Args:
        param: fp32, any shape; [F, d] with `unit_rows`.
        grad: of param's shape.
        m, v: first and second moment, of param's shape; both fp32, or both bf16, which are rounded at random (see
            naive.py).
        step: t, counted from 1.
        lr: learning rate of this step.
        scale: multiplies the gradient (clipping), a 0-dim tensor, so that it need not be copied to the host. If it is
            NaN or infinite, the step is skipped: param, m and v keep their values.
        unit_rows: every row of `param` is a unit-norm atom: the component of its gradient along the atom is removed
            before the step, and the row is scaled back to unit norm after it.

    Raises:
        ValueError: param, m or v is not contiguous, or the moments' dtype is neither fp32 nor bf16.
    """
    check_moments("adam_step: ", m, v, param.dtype)
    if not all(t.is_contiguous() for t in (param, m, v)):
        raise ValueError("adam_step: param, m and v are written in place and must be contiguous")
    adam = naive.Adam(step, lr, beta1, beta2, eps)
    choose("adam_step", param, IMPLEMENTATIONS)(param, grad, m, v, adam, scale, unit_rows)


def check_moments(where: str, m: Tensor, v: Tensor, exact: torch.dtype = torch.float32) -> None:
    """Raise ValueError unless both moments are of the `exact` dtype or both bf16."""
    if m.dtype != v.dtype or m.dtype not in (exact, torch.bfloat16):
        raise ValueError(f"{where}expected m and v in {exact}, or both in torch.bfloat16; got {m.dtype} and {v.dtype}")


def clip_scale(norm: Tensor, max_norm: float | None) -> Tensor:
    """The `scale` of adam_step that clips gradients to a global norm of `max_norm`: min(1, max_norm / norm), 0-dim.

    It is 1 if max_norm is None. It is NaN, which skips the step, if the norm is NaN or infinite.

    Args:
        norm: global norm of all gradients, 0-dim.
        max_norm: the bound, or None.
    """
    scale = torch.ones_like(norm) if max_norm is None else (max_norm / norm).clamp_max(1.0)
    return torch.where(torch.isfinite(norm), scale, torch.nan)
