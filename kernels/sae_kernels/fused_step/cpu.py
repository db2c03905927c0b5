"""The fused step on the CPU: a token-major forward pass, and a latent-major backward pass that updates the weights.

Forward, token by token: its atoms are gathered, summed to the reconstruction and, still in the L2 cache, multiplied
with the residual, which gives the gradient of its values. Backward, latent by latent: the residuals and inputs of its
tokens are summed, in the L1 cache, to the gradient rows of both matrices, and Adam updates their weights at once, so
the whole gradient is never stored. A backward pass without updates comes first if the norm may exceed `max_norm`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_kernels.adam_step.cpu import adam_constants, adam_flat, seed_of
from sae_kernels.adam_step.op import clip_scale
from sae_kernels.buffers import Workspace, scratch
from sae_kernels.codes import SparseCodes
from sae_kernels.formats.cpu import expand, store
from sae_kernels.fused_step.cpu_kernels import add_parts, decode_and_compare, sum_rows, sum_tokens, sweep_latents
from sae_kernels.fused_step.naive import Options
from sae_kernels.jit import sync_threads
from sae_kernels.latent_sweep.cpu import PARTS, LatentOrder
from sae_kernels.sparse_decode.cpu import as_numpy, token_starts

# a norm whose square is well inside the range of fp32
_LARGE = 1e18
# parts of the latents that are expanded to fp32 at a time, where the state is stored in fewer bits
EXPANDED_PARTS = 8


def forward(
    params: Any,
    codes: SparseCodes,
    target: Tensor,
    starts: Tensor | None,
    needs_dots: bool,
    workspace: Workspace,
    copies: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """residual, squared_error, dots and spread, as the fields of `StepForward`.

    The dots cost little while the atoms are in the cache, so they are always computed.
    """
    del needs_dots
    W_dec = params.W_dec if copies is None else copies.W_dec
    groups = 1 if starts is None else (starts.shape[0] - 1) // max(codes.tokens, 1)
    begins = token_starts(codes) if starts is None else starts.numpy()
    sync_threads(codes.values.numel() * target.shape[1])
    N, d = target.shape
    spread = workspace.get("spread", (N * groups, d))
    residual = workspace.get("residual", (N, d)) if groups > 1 else spread
    squared_error = workspace.get("squared_error", (N,))
    dots = workspace.get("dots", tuple(codes.values.shape))
    decode_and_compare(
        as_numpy(codes.values).reshape(-1),
        codes.indices.contiguous().numpy().reshape(-1),
        begins,
        groups,
        as_numpy(W_dec),
        as_numpy(params.b_dec),
        as_numpy(target),
        spread.numpy(),
        residual.numpy(),
        squared_error.numpy(),
        dots.numpy().reshape(-1),
    )
    return residual, squared_error, dots, spread


def update(params: Any, m: Any, v: Any, forward: Any, options: Options) -> tuple[Tensor, Tensor]:
    """params, m, v <- one step of Adam with the gradients of the loss; returns grad_norm and scale."""
    adam, max_norm, extra, through, more, allowed = options
    if allowed is not None and not allowed:
        return torch.zeros(()), torch.tensor(math.nan)
    sync_threads(params.W_enc.numel())
    codes, spread, groups, factor = forward.codes, forward.spread, forward.groups, forward.factor
    width, d = params.W_enc.shape
    if through is None:
        through = torch.where(codes.values <= 0, 0, forward.dots * factor)
    starts = token_starts(codes) if forward.starts is None else forward.starts.numpy()
    order = LatentOrder(codes.indices, starts, width)
    sums = scratch().get("fused.sums", (PARTS, d))
    squares = scratch().get("fused.squares", (PARTS,), torch.float64)
    place, rows = _extra_arrays(extra, width, d, spread.shape[1])
    codes_and_rows = as_numpy(codes.values).reshape(-1), as_numpy(through).reshape(-1), spread.numpy()
    stored = tuple(zip((params, m, v), ("w", "m", "v"), strict=True))
    exact = all(t.dtype == torch.float32 for group, _ in stored for t in group)
    constants, first_place = adam_constants(adam), int(seed_of(adam))

    def sweep(scale: float, write: bool) -> None:
        step = PARTS if exact else EXPANDED_PARTS
        for p in range(0, PARTS, step):
            parts = order.parts[p : p + step + 1]
            some = slice(int(parts[0]), int(parts[-1]))
            state = [
                tuple(expand(t[some], kind, f"{kind}{i}") for i, t in enumerate(group[:3])) for group, kind in stored
            ]
            sweep_latents(
                (order.bounds[some.start : some.stop + 1], parts - parts[0], order.tokens, order.entries),
                *codes_and_rows,
                as_numpy(forward.centred),
                groups,
                place[some],
                rows,
                *state,
                np.float32(factor),
                forward.tied,
                sums.numpy()[p : p + step],
                squares.numpy()[p : p + step],
                constants,
                np.float32(scale),
                write,
            )
            if write and not exact:
                for (group, kind), arrays in zip(stored, state, strict=True):
                    for t, array in zip(group[:3], arrays, strict=True):
                        start = np.uint32((first_place + some.start * array.shape[-1]) & 0xFFFFFFFF)
                        store(array, t[some], kind, start)

    grad_b_dec = _token_sum(spread, groups).mul_(factor)
    limit = _LARGE if max_norm is None else min(max_norm, _LARGE)
    if math.hypot(_norm_bound(params, forward, through, grad_b_dec, factor, extra), math.sqrt(more)) <= limit:
        # the bound shows that the norm is finite and will not be clipped
        scale = 1.0
        sweep(1.0, True)
        norm = _finish_bias(grad_b_dec, sums, squares, forward.tied, more)
    else:
        sweep(1.0, False)
        norm = _finish_bias(grad_b_dec, sums, squares, forward.tied, more)
        scale = float(clip_scale(norm, max_norm))
        if not np.isfinite(scale):
            return norm, torch.tensor(math.nan)
        sweep(scale, True)
    sync_threads(spread.shape[1])
    b_dec = [t.detach().numpy() for t in (params.b_dec, grad_b_dec, m.b_dec, v.b_dec)]
    adam_flat(*b_dec, constants, np.float32(scale))
    return norm, torch.tensor(scale)


def _finish_bias(grad_b_dec: Tensor, sums: Tensor, squares: Tensor, tied: bool, more: Tensor) -> Tensor:
    """Complete grad_b_dec in place; returns the global norm, fp32."""
    if tied:
        add_parts(sums.numpy(), np.float32(-1), grad_b_dec.numpy())
    return (squares.sum() + grad_b_dec.double().square().sum() + more).sqrt().float()


def _token_sum(spread: Tensor, groups: int) -> Tensor:
    """Sum of rows 0, G, 2 G, ... of spread [N G, d], in an order that does not depend on the number of threads."""
    sync_threads(spread.shape[0] // groups * spread.shape[1])
    sums = scratch().get("fused.token_sums", (PARTS, spread.shape[1]))
    sum_tokens(spread.numpy(), groups, sums.numpy())
    total = torch.zeros(spread.shape[1])
    add_parts(sums.numpy(), np.float32(1), total.numpy())
    return total


def _norm_bound(params: Any, forward: Any, through: Tensor, grad_b_dec: Tensor, factor: float, extra: Any) -> float:
    """An upper bound of the gradient's global norm, far cheaper than the norm itself; NaN or inf if not finite.

    By Cauchy and Schwarz ||f^T g|| <= ||f|| ||g|| for both matrices; the biases' gradients are computed exactly.
    """

    def norm(tensor: Tensor) -> float:
        flat = tensor.float().flatten()
        return math.sqrt(float(flat @ flat))

    error = abs(factor) * norm(forward.spread)
    decoder = norm(forward.codes.values) * error
    encoder = norm(through) * norm(forward.centred)
    grad_b_enc = torch.zeros_like(params.b_enc).index_add_(0, forward.codes.indices.flatten(), through.flatten())
    if extra is not None:
        decoder, encoder = decoder + norm(extra.W_dec), encoder + norm(extra.W_enc)
        grad_b_enc.index_add_(0, extra.rows, extra.b_enc.float())
    if forward.tied:
        sums = scratch().get("fused.sums", (PARTS, params.W_enc.shape[1])).numpy()
        sum_rows(as_numpy(params.W_enc), grad_b_enc.numpy(), sums)
        grad_b_dec = grad_b_dec.clone()
        add_parts(sums, np.float32(-1), grad_b_dec.numpy())
    bound = math.hypot(decoder, encoder, norm(grad_b_enc), norm(grad_b_dec))
    return 1.001 * bound  # these sums round differently from the sweep's


def _extra_arrays(extra: Any, width: int, d: int, d_out: int) -> tuple[Any, ...]:
    """The row of every latent in the extra gradients, -1 for none, int32 [F] (or [0]), and the three gradients."""
    if extra is None:
        rows = np.empty((0, d), np.float32), np.empty(0, np.float32), np.empty((0, d_out), np.float32)
        return np.empty(0, np.int32), rows
    place = scratch().get("fused.place", (width,), torch.int32).fill_(-1)
    place[extra.rows] = torch.arange(extra.rows.shape[0], dtype=torch.int32)
    return place.numpy(), (as_numpy(extra.W_enc), as_numpy(extra.b_enc), as_numpy(extra.W_dec))
