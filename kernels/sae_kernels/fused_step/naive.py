"""The fused step's reference: the same step from the other ops, with whole gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_kernels.adam_step.op import adam_step, clip_scale
from sae_kernels.codes import SparseCodes
from sae_kernels.latent_sweep.op import latent_sweep
from sae_kernels.sparse_decode.op import sparse_decode


def forward(
    params: Any, codes: SparseCodes, centred: Tensor, target: Tensor, workspace: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """residual, squared_error, dots; see op.py."""
    del workspace
    residual = target.float() - sparse_decode(codes, params.W_dec, params.b_dec).float()
    dots = latent_sweep(codes, residual, centred, params.W_dec).values
    return residual, residual.square().sum(1), dots


def update(
    params: Any,
    m: Any,
    v: Any,
    forward: Any,
    adam: tuple[int, float, float, float, float],
    max_norm: float | None,
    extra: Any,
) -> tuple[Tensor, Tensor]:
    """grad_norm, applied; see op.py."""
    grad_out = forward.residual * (-2.0 / max(forward.residual.shape[0], 1))
    sweep = latent_sweep(forward.codes, grad_out, forward.centred, params.W_dec)
    W_enc, b_enc, W_dec = sweep.W_enc, sweep.b_enc, sweep.W_dec
    if extra is not None:
        W_enc.index_add_(0, extra.rows, extra.W_enc.float())
        b_enc.index_add_(0, extra.rows, extra.b_enc.float())
        W_dec.index_add_(0, extra.rows, extra.W_dec.float())
    b_dec = grad_out.sum(0)
    if forward.tied:
        b_dec = b_dec - b_enc @ params.W_enc
    grads = (W_enc, b_enc, W_dec, b_dec)
    norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    scale = clip_scale(norm, max_norm)
    step, lr, beta1, beta2, eps = adam
    for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
        adam_step(
            param, grad, m[place], v[place],
            step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, scale=scale, unit_rows=place == 2,
        )  # fmt: skip
    return norm, torch.isfinite(scale)
