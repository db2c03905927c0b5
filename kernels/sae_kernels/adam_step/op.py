"""adam_step: the optimizer's pass over one parameter and its two moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_kernels.adam_step import naive
from sae_kernels.dispatch import choose
from sae_kernels.formats.naive import MOMENTS, moment_shape

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
    numbers: Tensor | None = None,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), in place on `param`, `m` and `v`.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g²;  param <- param - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)

    Args:
        param: fp32, any shape; [F, d] with `unit_rows`. A matrix may be bf16, and is then rounded at random.
        grad: of param's shape.
        m, v: first and second moment, of param's shape; both fp32, or both bf16. Of a matrix [F, d] both may be 8-bit
            codes, uint8 [F, d + 16]. Formats and their rounding are those of sae_kernels/formats/naive.py.
        step: t, counted from 1.
        lr: learning rate of this step.
        scale: multiplies the gradient (clipping), a 0-dim tensor, so that it need not be copied to the host. If it is
            NaN or infinite, the step is skipped: param, m and v keep their values.
        unit_rows: every row of `param` is a unit-norm atom: the component of its gradient along the atom is removed
            before the step, and the row is scaled back to unit norm after it.
        numbers: int32 [3] on a GPU, from `fill_numbers` with the same step and rates, which are then read from there.

    Raises:
        ValueError: param, m or v is not contiguous, or of a dtype or shape that is not offered.
    """
    if param.dtype == torch.bfloat16 and param.ndim != 2:
        raise ValueError(f"adam_step: param in torch.bfloat16: expected a matrix; got shape {tuple(param.shape)}")
    exact = param.dtype if param.dtype == torch.float64 else torch.float32
    check_moments("adam_step: ", param, m, v, (exact, *MOMENTS[1:]) if param.ndim == 2 else (exact, torch.bfloat16))
    if not all(t.is_contiguous() for t in (param, m, v)):
        raise ValueError("adam_step: param, m and v are written in place and must be contiguous")
    adam = naive.Adam(step, lr, beta1, beta2, eps, numbers)
    choose("adam_step", param, IMPLEMENTATIONS)(param, grad, m, v, adam, scale, unit_rows)


def check_moments(where: str, param: Tensor, m: Tensor, v: Tensor, formats: Sequence[torch.dtype]) -> None:
    """Raise ValueError unless both moments of `param` are in one of these dtypes, and of its shape."""
    if m.dtype != v.dtype or m.dtype not in formats:
        known = ", ".join(str(dtype) for dtype in formats)
        raise ValueError(f"{where}expected m and v both in one of {known}; got {m.dtype} and {v.dtype}")
    shape = moment_shape(param, m.dtype)
    if tuple(m.shape) != shape or tuple(v.shape) != shape:
        raise ValueError(f"{where}expected m and v {list(shape)}; got {list(m.shape)} and {list(v.shape)}")


def clip_scale(norm: Tensor, max_norm: float | None) -> Tensor:
    """The `scale` of adam_step that clips gradients to a global norm of `max_norm`: min(1, max_norm / norm), 0-dim.

    It is 1 if max_norm is None. It is NaN, which skips the step, if the norm is NaN or infinite.

    Args:
        norm: global norm of all gradients, 0-dim.
        max_norm: the bound, or None.
    """
    scale = torch.ones_like(norm) if max_norm is None else (max_norm / norm).clamp_max(1.0)
    return torch.where(torch.isfinite(norm), scale, torch.nan)
