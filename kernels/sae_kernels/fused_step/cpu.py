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
from sae_kernels.fused_step.naive import Options
from sae_kernels.jit import jit, prange, sync_threads
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
    _decode_and_compare(
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
            _sweep(
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
        _add_parts(sums.numpy(), np.float32(-1), grad_b_dec.numpy())
    return (squares.sum() + grad_b_dec.double().square().sum() + more).sqrt().float()


def _token_sum(spread: Tensor, groups: int) -> Tensor:
    """Sum of rows 0, G, 2 G, ... of spread [N G, d], in an order that does not depend on the number of threads."""
    sync_threads(spread.shape[0] // groups * spread.shape[1])
    sums = scratch().get("fused.token_sums", (PARTS, spread.shape[1]))
    _sum_tokens(spread.numpy(), groups, sums.numpy())
    total = torch.zeros(spread.shape[1])
    _add_parts(sums.numpy(), np.float32(1), total.numpy())
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
        _sum_rows(as_numpy(params.W_enc), grad_b_enc.numpy(), sums)
        grad_b_dec = grad_b_dec.clone()
        _add_parts(sums, np.float32(-1), grad_b_dec.numpy())
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


@jit(parallel=True)
def _sum_tokens(spread, groups, sums):
    """sums[p] = the sum of the first rows of the tokens of part p, all parts having equally many tokens."""
    tokens, parts = spread.shape[0] // groups, sums.shape[0]
    for p in prange(parts):
        total = sums[p]
        total[:] = 0
        for n in range(tokens * p // parts, tokens * (p + 1) // parts):
            row = spread[n * groups]
            for j in range(row.shape[0]):
                total[j] += row[j]


@jit(parallel=True)
def _sum_rows(rows, weights, sums):
    """sums[p] = Σ weights[f] rows[f] over the rows of part p, all parts having equally many rows."""
    count, parts = rows.shape[0], sums.shape[0]
    for p in prange(parts):
        total = sums[p]
        total[:] = 0
        for f in range(count * p // parts, count * (p + 1) // parts):
            row = rows[f]
            for j in range(row.shape[0]):
                total[j] += weights[f] * row[j]


@jit()
def _add_parts(sums, sign, out):
    for p in range(sums.shape[0]):
        for j in range(out.shape[0]):
            out[j] += sign * sums[p, j]


@jit(parallel=True)
def _decode_and_compare(values, indices, starts, groups, W, b, target, spread, residual, squared_error, dots):
    """residual, squared_error, spread and dots of every token, as the fields of `StepForward`."""
    width = W.shape[1]
    share = np.float32(1) / np.float32(groups)
    for n in prange(target.shape[0]):
        error = np.float32(0)
        for g in range(groups):
            row = spread[n * groups + g]
            if g == 0:
                for j in range(width):
                    row[j] = target[n, j] - b[j]
            else:
                for j in range(width):
                    row[j] = spread[n * groups + g - 1, j]
            _subtract(values, indices, starts[n * groups + g], starts[n * groups + g + 1], W, row)
            total = np.float32(0)
            for j in range(width):
                total += row[j] * row[j]
            error += total
        squared_error[n] = error * share
        if groups > 1:
            for j in range(width):
                residual[n, j] = spread[n * groups + groups - 1, j]
                spread[n * groups + groups - 1, j] *= share
            for g in range(groups - 2, -1, -1):
                row, later = spread[n * groups + g], spread[n * groups + g + 1]
                for j in range(width):
                    row[j] = row[j] * share + later[j]
        # the same atoms again, from the cache, for the gradients of the values
        for g in range(groups):
            row = spread[n * groups + g]
            for i in range(starts[n * groups + g], starts[n * groups + g + 1]):
                w0 = W[indices[i]]
                total = np.float32(0)
                for j in range(width):
                    total += row[j] * w0[j]
                dots[i] = total


@jit()
def _subtract(values, indices, i, stop, W, row):
    """row -= Σ f_i w_i over the entries i:stop, four at a time, so that the row is read and written once a group."""
    width = row.shape[0]
    while i + 4 <= stop:
        w0, w1, w2, w3 = W[indices[i]], W[indices[i + 1]], W[indices[i + 2]], W[indices[i + 3]]
        f0, f1, f2, f3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        for j in range(width):
            row[j] -= (f0 * w0[j] + f1 * w1[j]) + (f2 * w2[j] + f3 * w3[j])
        i += 4
    while i < stop:
        w0, f0 = W[indices[i]], values[i]
        for j in range(width):
            row[j] -= f0 * w0[j]
        i += 1


@jit()
def _gather(order, f, values, through, spread, x, groups, place, extra, factor, g_dec, g_enc):
    """g_dec, g_enc = the gradient rows of latent f; returns its gradient of b_enc and whether there is any gradient."""
    bounds, _, tokens, entries = order
    width, width_in = g_dec.shape[0], g_enc.shape[0]
    g_dec[:] = 0
    g_enc[:] = 0
    bias = np.float32(0)
    i, stop = bounds[f], bounds[f + 1]
    # two tokens at a time, so that the sums are read and written half as often
    while i + 2 <= stop:
        r0, r1 = spread[tokens[i]], spread[tokens[i + 1]]
        c0, c1 = x[tokens[i] // groups], x[tokens[i + 1] // groups]
        value0, value1 = values[entries[i]] * factor, values[entries[i + 1]] * factor
        slope0, slope1 = through[entries[i]], through[entries[i + 1]]
        bias += slope0 + slope1
        for j in range(width):
            g_dec[j] += value0 * r0[j] + value1 * r1[j]
        for j in range(width_in):
            g_enc[j] += slope0 * c0[j] + slope1 * c1[j]
        i += 2
    if i < stop:
        r0, c0 = spread[tokens[i]], x[tokens[i] // groups]
        value0, slope0 = values[entries[i]] * factor, through[entries[i]]
        bias += slope0
        for j in range(width):
            g_dec[j] += value0 * r0[j]
        for j in range(width_in):
            g_enc[j] += slope0 * c0[j]
    some = bounds[f + 1] > bounds[f]
    if place.shape[0] > 0 and place[f] >= 0:
        some = True
        e_enc, e_bias, e_dec = extra[0][place[f]], extra[1][place[f]], extra[2][place[f]]
        bias += e_bias
        for j in range(width):
            g_dec[j] += e_dec[j]
        for j in range(width_in):
            g_enc[j] += e_enc[j]
    return bias, some


@jit()
def _adam_row(p, g, m, v, constants, scale):
    b1, c1, b2, c2, rate, root, eps = constants
    for j in range(p.shape[0]):
        part = g[j] * scale
        first = b1 * m[j] + c1 * part
        second = b2 * v[j] + c2 * part * part
        m[j], v[j] = first, second
        p[j] -= rate * first / (np.sqrt(second) * root + eps)


@jit()
def _adam_unit_row(p, g, m, v, constants, scale):
    """The same on an atom, with its gradient projected orthogonally to it and its norm restored."""
    width = p.shape[0]
    along = np.float32(0)
    for j in range(width):
        along += g[j] * p[j]
    for j in range(width):
        g[j] -= along * p[j]
    _adam_row(p, g, m, v, constants, scale)
    square = np.float32(0)
    for j in range(width):
        square += p[j] * p[j]
    shrink = np.float32(1) / max(np.sqrt(square), np.float32(1.1754944e-38))
    for j in range(width):
        p[j] *= shrink


@jit(parallel=True)
def _sweep(
    order,
    values,
    through,
    spread,
    x,
    groups,
    place,
    extra,
    params,
    m,
    v,
    factor,
    tied,
    sums,
    squares,
    constants,
    scale,
    write,
):
    """Compute the gradients latent by latent and, if `write`, update parameters and moments by Adam.

    Fills, for every part of the latents, the sum of the gradients' squares, and with `tied` Σ_f grad_b_enc[f] W_enc[f].
    """
    parts = order[1]
    W_enc, b_enc, W_dec = params
    width = W_enc.shape[1]
    for p in prange(parts.shape[0] - 1):
        g_dec, g_enc = np.empty(W_dec.shape[1], np.float32), np.empty(width, np.float32)
        g_bias = np.empty(1, np.float32)
        total = 0.0
        sums[p, :] = 0
        for f in range(parts[p], parts[p + 1]):
            bias, some = _gather(order, f, values, through, spread, x, groups, place, extra, factor, g_dec, g_enc)
            if some:
                square = np.float32(0)
                for j in range(g_dec.shape[0]):
                    square += g_dec[j] * g_dec[j]
                for j in range(width):
                    square += g_enc[j] * g_enc[j]
                total += np.float64(square) + np.float64(bias) * np.float64(bias)
                if tied:
                    for j in range(width):
                        sums[p, j] += bias * W_enc[f, j]
            if write:
                g_bias[0] = bias
                entry = slice(f, f + 1)
                _adam_row(b_enc[entry], g_bias, m[1][entry], v[1][entry], constants, scale)
                _adam_row(W_enc[f], g_enc, m[0][f], v[0][f], constants, scale)
                _adam_unit_row(W_dec[f], g_dec, m[2][f], v[2][f], constants, scale)
        squares[p] = total
