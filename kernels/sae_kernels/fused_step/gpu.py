"""The fused step on the GPU: a token-major forward pass; then a latent-major sweep that updates the weights.

No F x d gradient is written and nothing is copied to the host. Whether the gradient must be clipped is decided on the
device: if a bound by Cauchy and Schwarz shows that its norm is below the limit, the pass of the sweep that would
measure the norm leaves at once, and the pass that writes has the scale 1. It writes nothing where the scale is not
finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sae_kernels.adam_step.gpu import adam_constants, adam_step
from sae_kernels.adam_step.op import clip_scale
from sae_kernels.fused_step.gpu_forward import dot_norm, forward
from sae_kernels.fused_step.gpu_sweep import prepare, sweep
from sae_kernels.fused_step.naive import Options

__all__ = ["forward", "update"]

# a norm whose square is well inside the range of fp32
_LARGE = 1e18


def update(params: Any, m: Any, v: Any, forward: Any, options: Options) -> tuple[Tensor, Tensor]:
    """params, m, v <- one step of Adam with the gradients of the loss; returns grad_norm and scale."""
    adam, max_norm, extra, through, more, allowed = options
    if through is None and forward.dots.numel():
        through = torch.where(forward.codes.values <= 0, 0, forward.dots * forward.factor)
    prepared = prepare(params, forward, through, extra)
    constants = adam_constants(adam, params.W_enc.device)
    token_sum = forward.spread[:: forward.groups].sum(0, dtype=torch.float32) * forward.factor
    enough = _is_bounded(params, forward, through, extra, token_sum, more, max_norm)
    one = torch.ones_like(enough, dtype=torch.float32)

    def measured(sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        b_dec = token_sum - sums.sum(0) if forward.tied else token_sum
        return b_dec, (squares.double().sum() + b_dec.double().square().sum() + more).sqrt().float()

    decision = torch.stack([one, enough.float()])
    _, norm = measured(*sweep(prepared, params, m, v, forward.copies, constants, decision, False))
    scale = torch.where(enough, one, clip_scale(norm, max_norm))
    if allowed is not None:
        scale = torch.where(allowed, scale, math.nan)
    decision = torch.stack([scale, enough.float()])
    b_dec, bounded = measured(*sweep(prepared, params, m, v, forward.copies, constants, decision, True))
    adam_step(params.b_dec, b_dec, m.b_dec, v.b_dec, adam._replace(numbers=constants["numbers"]), scale, False)
    norm = torch.where(enough, bounded, norm)
    return norm if allowed is None else torch.where(allowed, norm, 0), scale


def _is_bounded(
    params: Any,
    forward: Any,
    through: Tensor | None,
    extra: Any,
    token_sum: Tensor,
    more: Tensor,
    max_norm: float | None,
) -> Tensor:
    """Whether an upper bound shows that the gradient is finite and within max_norm, 0-dim bool; no synchronisation.

    By Cauchy and Schwarz ||f^T g|| <= ||f|| ||g|| for both matrices, b_enc being one more column of W_enc whose input
    is 1. With `tied` b_dec's gradient has the part Σ_f grad_b_enc[f] W_enc[f], of at most Σ |δ| max_f ||W_enc[f]||. If
    the slopes δ are not known yet, |dot| <= ||residual|| bounds them, since atoms have unit norm; where that is not
    enough, the dots' norm is computed.
    """
    codes, factor = forward.codes, abs(forward.factor)
    entries, R = codes.values.numel(), 0 if extra is None else extra.rows.shape[0]
    error, zero = _norm(forward.spread), torch.zeros((), device=params.W_enc.device)
    inputs = torch.hypot(_norm(forward.centred), zero + math.sqrt(codes.tokens))
    decoder = _norm(codes.values) * error * factor
    more_enc = more_dec = zero
    if extra is not None:
        more_dec, more_enc = _norm(extra.W_dec), torch.hypot(_norm(extra.W_enc), _norm(extra.b_enc))
    longest = zero
    if forward.tied:
        copies = forward.copies
        norms = params.W_enc.float().norm(dim=1) if copies is None else copies.row_norms
        longest = norms.max()
    limit = _LARGE if max_norm is None else min(max_norm, _LARGE)

    def within(slopes: Tensor) -> Tensor:
        encoder = slopes * inputs + more_enc
        b_dec = _norm(token_sum) + (math.sqrt(entries) * slopes + math.sqrt(R) * more_enc) * longest
        parts = torch.stack([decoder + more_dec, encoder, b_dec, more.sqrt().float()])
        # these sums round differently from the sweep's
        return 1.001 * _norm(parts) <= limit

    if through is not None:
        return within(_norm(through))
    rows = torch.linalg.vector_norm(forward.spread, dim=1, dtype=torch.float32)
    starts = codes.offsets if forward.starts is None else forward.starts
    listed = codes.values.shape[1] if starts is None else starts.diff()
    enough = within(factor * (rows.square() * listed).sum().sqrt())
    return enough | within(factor * dot_norm(params, forward, enough))


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)
