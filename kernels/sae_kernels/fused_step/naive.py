"""The fused step, the reference: the same step from the other ops, with whole gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_kernels.adam_step.naive import Adam
from sae_kernels.adam_step.op import adam_step, clip_scale
from sae_kernels.codes import SparseCodes
from sae_kernels.latent_sweep.op import encode_weight_backward, latent_sweep
from sae_kernels.sparse_decode.op import sparse_decode


def forward(
    params: Any,
    codes: SparseCodes,
    target: Tensor,
    starts: Tensor | None,
    needs_dots: bool,
    workspace: Any,
    copies: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """residual, squared_error, dots and spread, as the fields of `StepForward`."""
    del workspace, needs_dots
    W_dec = (params if copies is None else copies).W_dec.float()
    codes = codes.with_values(codes.values.float())
    if starts is None:
        residual = target.float() - sparse_decode(codes, W_dec, params.b_dec)
        return residual, residual.square().sum(1), _dots(codes, residual, W_dec), residual
    N, G = codes.tokens, (starts.shape[0] - 1) // max(codes.tokens, 1)
    grouped = SparseCodes(codes.values, codes.indices, codes.width, starts)
    parts = sparse_decode(grouped, W_dec, torch.zeros_like(params.b_dec)).view(N, G, -1)
    residuals = (target.float() - params.b_dec).unsqueeze(1) - parts.cumsum(1)
    spread = (residuals.flip(1).cumsum(1).flip(1) / G).flatten(0, 1)
    error = residuals.square().sum(2).mean(1)
    return residuals[:, -1].contiguous(), error, _dots(grouped, spread, W_dec), spread


class Options(NamedTuple):
    """The options of `fused_update`, under its names."""

    adam: Adam
    max_norm: float | None
    extra: Any
    through: Tensor | None
    more: Tensor
    allowed: Tensor | None


def update(params: Any, m: Any, v: Any, forward: Any, options: Options) -> tuple[Tensor, Tensor]:
    """params, m, v <- one step of Adam with the gradients of the loss; returns grad_norm and scale."""
    adam, max_norm, extra, through, more, allowed = options
    codes: SparseCodes = forward.codes
    grouped = codes if forward.starts is None else SparseCodes(codes.values, codes.indices, codes.width, forward.starts)
    if through is None:
        # a GPU's forward pass leaves the dots to the update
        dots = forward.dots if forward.dots.numel() else _dots(grouped, forward.spread, params.W_dec.float())
        through = torch.where(codes.values <= 0, 0, dots * forward.factor)
    grad_out = forward.spread * forward.factor
    W_dec = torch.zeros_like(params.W_dec, dtype=torch.float32).index_add_(
        0, grouped.indices.flatten(), grouped.values.flatten().unsqueeze(1) * grad_out[grouped.rows().flatten()]
    )
    # `through` already is zero where the relu cuts, so that entries of any sign pass it on
    W_enc, b_enc = encode_weight_backward(
        through, torch.ones_like(codes.values), codes.indices, codes.offsets, forward.centred, codes.width
    )
    if extra is not None:
        W_enc.index_add_(0, extra.rows, extra.W_enc.float())
        b_enc.index_add_(0, extra.rows, extra.b_enc.float())
        W_dec.index_add_(0, extra.rows, extra.W_dec.float())
    b_dec = grad_out[:: forward.groups].sum(0)
    if forward.tied:
        b_dec = b_dec - b_enc @ params.W_enc.float()
    grads = (W_enc, b_enc, W_dec, b_dec)
    norm = (torch.stack([grad.square().sum() for grad in grads]).sum() + more).sqrt().float()
    scale = clip_scale(norm, max_norm)
    if allowed is not None:
        norm, scale = torch.where(allowed, norm, 0), torch.where(allowed, scale, torch.nan)
    for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
        adam_step(param, grad, m[place], v[place], **adam._asdict(), scale=scale, unit_rows=place == 2)
    return norm, scale


def _dots(codes: SparseCodes, rows: Tensor, W_dec: Tensor) -> Tensor:
    """rows_n · w_j of every entry."""
    return latent_sweep(codes, rows, torch.zeros_like(rows), W_dec).values
