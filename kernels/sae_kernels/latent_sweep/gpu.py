"""Latent sweep in Triton: entries sorted by latent, one program a latent, tokens in order, no float atomics.

torch sorts the entries by latent (a stable radix sort of nnz int32 keys, less than a tenth of the sweep's memory
traffic). The program of a latent then reads its atom once, and its tokens' rows of g and x. A latent of more than
SEGMENT tokens is divided into pieces, which run in parallel and whose sums are added in order. The pieces depend on the
codes alone, so two runs agree bit for bit on any GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.gpu_product import rows_contiguous
from sae_kernels.launch import launch
from sae_kernels.tuning import sweep_config

SEGMENT = 512
"""Most tokens of one latent in one program."""


@triton.jit
def sweep_rows(
    start, stop, i_f, values, order, tokens, grad_out, x, W_dec, grad_values, d, stride_g, stride_x, stride_w, K,
    CSR: tl.constexpr, HAS_G: tl.constexpr, HAS_W: tl.constexpr, HAS_X: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Σ f g [BLOCK_D], Σ δ x [BLOCK_D] and Σ δ over the sorted entries start:stop of latent i_f; δ = [f > 0] g·w, fp32.

    g·w of every entry is stored to grad_values if HAS_W, loaded from it otherwise.
    """
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < d
    b_dec = tl.zeros((BLOCK_D,), tl.float32)
    b_enc = tl.zeros((BLOCK_D,), tl.float32)
    b_bias = tl.zeros((BLOCK_E,), tl.float32)
    # an atom that no token lists is not read
    m_w = o_d < tl.where(start < stop, d, 0)
    b_w = b_dec
    if HAS_W:
        b_w = tl.load(W_dec + i_f.to(tl.int64) * stride_w + o_d, mask=m_w, other=0.0).to(tl.float32)
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        m_e = o_e < stop
        m_tile = m_e[:, None] & m_d[None, :]
        b_entry = tl.load(order + o_e, mask=m_e, other=0)
        b_value = tl.load(values + b_entry, mask=m_e, other=0.0).to(tl.float32)
        b_token = tl.load(tokens + b_entry, mask=m_e, other=0) if CSR else b_entry // K
        if HAS_G:
            b_g = tl.load(grad_out + b_token[:, None] * stride_g + o_d[None, :], mask=m_tile, other=0.0).to(tl.float32)
            b_dec += tl.sum(b_value[:, None] * b_g, 0)
        if HAS_W:
            b_slope = tl.sum(b_g * b_w[None, :], 1)
            tl.store(grad_values + b_entry, b_slope, mask=m_e)
        elif HAS_X:
            b_slope = tl.load(grad_values + b_entry, mask=m_e, other=0.0).to(tl.float32)
        if HAS_X:
            # `value <= 0` is false for NaN, which passes its gradient on as in the reference
            b_slope = tl.where((b_value <= 0) | (o_e >= stop), 0.0, b_slope)
            b_x = tl.load(x + b_token[:, None] * stride_x + o_d[None, :], mask=m_tile, other=0.0).to(tl.float32)
            b_enc += tl.sum(b_slope[:, None] * b_x, 0)
            b_bias += b_slope
    return b_dec, b_enc, tl.sum(b_bias, 0)


@triton.jit(do_not_specialize=["K", "segment"])
def _sweep(
    values, order, bounds, tokens, grad_out, x, W_dec, grad_values, grad_W_dec, grad_W_enc, grad_b_enc,
    d, stride_g, stride_x, stride_w, K, segment,
    CSR: tl.constexpr, HAS_G: tl.constexpr, HAS_W: tl.constexpr, HAS_X: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient rows of latent i_f, unless it has more than `segment` entries: those come from _sweep_pieces."""
    i_f = tl.program_id(0)
    start = tl.load(bounds + i_f)
    stop = tl.load(bounds + i_f + 1)
    if stop - start <= segment:
        b_dec, b_enc, bias = sweep_rows(
            start, stop, i_f, values, order, tokens, grad_out, x, W_dec, grad_values,
            d, stride_g, stride_x, stride_w, K, CSR, HAS_G, HAS_W, HAS_X, BLOCK_E, BLOCK_D,
        )  # fmt: skip
        o_d = tl.arange(0, BLOCK_D)
        o_row = i_f.to(tl.int64) * d + o_d
        if HAS_G:
            tl.store(grad_W_dec + o_row, b_dec, mask=o_d < d)
        if HAS_X:
            tl.store(grad_W_enc + o_row, b_enc, mask=o_d < d)
            tl.store(grad_b_enc + i_f, bias)


@triton.jit(do_not_specialize=["K", "segment", "F"])
def _sweep_pieces(
    values, order, bounds, tokens, grad_out, x, W_dec, grad_values, part_dec, part_enc, part_bias, owner, first_piece,
    d, stride_g, stride_x, stride_w, K, segment, F,
    CSR: tl.constexpr, HAS_G: tl.constexpr, HAS_W: tl.constexpr, HAS_X: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row i of part_* = the same sums over piece i of the latents that are divided."""
    i = tl.program_id(0)
    i_f = tl.load(owner + i)
    if i_f < F:
        start = tl.load(bounds + i_f) + (i - tl.load(first_piece + i_f)) * segment
        stop = tl.minimum(start + segment, tl.load(bounds + i_f + 1))
        b_dec, b_enc, bias = sweep_rows(
            start, stop, i_f, values, order, tokens, grad_out, x, W_dec, grad_values,
            d, stride_g, stride_x, stride_w, K, CSR, HAS_G, HAS_W, HAS_X, BLOCK_E, BLOCK_D,
        )  # fmt: skip
        o_d = tl.arange(0, BLOCK_D)
        o_row = i.to(tl.int64) * d + o_d
        if HAS_G:
            tl.store(part_dec + o_row, b_dec, mask=o_d < d)
        if HAS_X:
            tl.store(part_enc + o_row, b_enc, mask=o_d < d)
            tl.store(part_bias + i, bias)


@triton.jit(do_not_specialize=["segment", "F"])
def _merge(
    part_dec, part_enc, part_bias, owner, first_piece, bounds, grad_W_dec, grad_W_enc, grad_b_enc, d, segment, F,
    HAS_G: tl.constexpr, HAS_X: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient rows of a divided latent: the program of its first piece adds up the pieces in order."""
    i = tl.program_id(0)
    i_f = tl.load(owner + i)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.load(first_piece + i_f, mask=i_f < F, other=-1)
    if i == first:
        b_dec = tl.zeros((BLOCK_D,), tl.float32)
        b_enc = tl.zeros((BLOCK_D,), tl.float32)
        bias = 0.0
        entries = tl.load(bounds + i_f + 1) - tl.load(bounds + i_f)
        for j in range(first, first + (entries + segment - 1) // segment):
            # j is int64, as first_piece is
            o_part = j * d + o_d
            if HAS_G:
                b_dec += tl.load(part_dec + o_part, mask=o_d < d, other=0.0)
            if HAS_X:
                b_enc += tl.load(part_enc + o_part, mask=o_d < d, other=0.0)
                bias += tl.load(part_bias + j)
        o_row = i_f.to(tl.int64) * d + o_d
        if HAS_G:
            tl.store(grad_W_dec + o_row, b_dec, mask=o_d < d)
        if HAS_X:
            tl.store(grad_W_enc + o_row, b_enc, mask=o_d < d)
            tl.store(grad_b_enc + i_f, bias)


class LatentOrder(NamedTuple):
    """The entries of a batch's codes sorted by latent, in the order of their tokens within a latent."""

    order: Tensor
    """Place in the codes of every sorted entry, int64 [nnz]."""
    bounds: Tensor
    """The entries of latent j are order[bounds[j]:bounds[j+1]], int32 [F+1]."""
    tokens: Tensor | None
    """Token of every entry of CSR codes, int64 [nnz]; None for rectangular codes."""


def latent_order(indices: Tensor, offsets: Tensor | None, width: int) -> LatentOrder:
    """Sort the entries by latent, without copying anything to the host."""
    keys = indices.reshape(-1).to(torch.int32)
    latents, order = keys.sort(stable=True)
    bounds = torch.searchsorted(latents, torch.arange(width + 1, dtype=torch.int32, device=keys.device), out_int32=True)
    tokens = None
    if offsets is not None:
        rows = torch.arange(offsets.shape[0] - 1, device=keys.device)
        tokens = torch.repeat_interleave(rows, offsets.diff(), output_size=keys.shape[0])
    return LatentOrder(order, bounds, tokens)


def pieces_of(bounds: Tensor, segment: int, most: int) -> tuple[Tensor, Tensor]:
    """The latent of each of `most` pieces (F beyond the last one), and the first piece of every latent, int64 [F].

    Only latents with more than `segment` entries have pieces, of at most that many entries each.
    """
    counts = bounds.diff()
    pieces = torch.where(counts > segment, (counts + segment - 1) // segment, 0)
    ends = pieces.cumsum(0)
    return torch.searchsorted(ends, torch.arange(most, device=bounds.device), right=True), ends - pieces


def latent_sweep(
    codes: SparseCodes,
    grad_out: Tensor | None,
    W_dec: Tensor | None,
    x: Tensor | None,
    grad_values: Tensor | None,
    *,
    segment: int = SEGMENT,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """grad_W_dec = f^T g; grad_values = (g W_dec^T) at the codes' entries; grad_W_enc = δ^T x; grad_b_enc = Σ_n δ_n.

    All in fp32; δ are the gradients of the pre-activations, grad_values where f is not <= 0. `segment` is the largest
    number of tokens of a latent in one program.
    """
    has_g, has_w = grad_out is not None, grad_out is not None and W_dec is not None
    has_x = x is not None and (has_w or grad_values is not None)
    if not has_g and not has_x:
        return None, grad_values, None, None
    values, offsets, width = codes.values, codes.offsets, codes.width
    nnz, device = values.numel(), values.device
    rows = [None if t is None else rows_contiguous(t) for t in (grad_out, x, W_dec)]
    d = next(t.shape[1] for t in rows if t is not None)
    order = latent_order(codes.indices, offsets, width)
    out = torch.empty(values.shape, device=device) if has_w else grad_values
    grad_W_dec = torch.empty(width, d, device=device) if has_g else None
    grad_W_enc = torch.empty(width, d, device=device) if has_x else None
    grad_b_enc = torch.empty(width, device=device) if has_x else None
    config = sweep_config(d)
    g_rows, x_rows, w_rows = (order.order if t is None else t for t in rows)
    arguments = {
        "values": values.contiguous(),
        "order": order.order,
        "bounds": order.bounds,
        "tokens": order.order if order.tokens is None else order.tokens,
        "grad_out": g_rows,
        "x": x_rows,
        "W_dec": w_rows,
        "grad_values": order.order if out is None else out.contiguous(),
        "d": d,
        "stride_g": g_rows.stride(0),
        "stride_x": x_rows.stride(0),
        "stride_w": w_rows.stride(0),
        "K": 1 if offsets is not None else max(1, values.shape[1]),
        "segment": segment,
    }
    flags = {"CSR": offsets is not None, "HAS_G": has_g, "HAS_W": has_w, "HAS_X": has_x}
    blocks = {"BLOCK_E": config.rows, "BLOCK_D": config.block_d}
    grads = [order.order if t is None else t for t in (grad_W_dec, grad_W_enc, grad_b_enc)]
    outputs = dict(zip(("grad_W_dec", "grad_W_enc", "grad_b_enc"), grads, strict=True))
    launch(_sweep, (width,), arguments | outputs, flags | blocks, warps=config.warps)
    # a token lists a latent at most once, so no latent of a small batch has more entries than that
    if codes.tokens > segment:
        _sweep_dense_latents(arguments, flags, config, outputs, 2 * nnz // segment, width)
    return grad_W_dec, out, grad_W_enc, grad_b_enc


def _sweep_dense_latents(arguments, flags, config, outputs, most, width):
    """Fill the gradient rows of latents with more than `segment` entries, from at most `most` pieces."""
    bounds, d, segment = arguments["bounds"], arguments["d"], arguments["segment"]
    owner, first_piece = pieces_of(bounds, segment, most)
    parts = {
        "part_dec": torch.empty(most if flags["HAS_G"] else 0, d, device=bounds.device),
        "part_enc": torch.empty(most if flags["HAS_X"] else 0, d, device=bounds.device),
        "part_bias": torch.empty(most, device=bounds.device),
        "owner": owner,
        "first_piece": first_piece,
        "F": width,
    }
    blocks = {"BLOCK_E": config.rows, "BLOCK_D": config.block_d}
    launch(_sweep_pieces, (most,), arguments | parts, flags | blocks, warps=config.warps)
    launch(
        _merge,
        (most, triton.cdiv(d, 256)),
        parts | outputs | {"bounds": bounds, "segment": segment, "d": d},
        {"HAS_G": flags["HAS_G"], "HAS_X": flags["HAS_X"], "BLOCK_D": 256},
        warps=2,
    )
