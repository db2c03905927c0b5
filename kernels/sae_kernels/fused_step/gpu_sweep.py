"""The backward half of the fused step in Triton: one latent-major sweep that makes gradients and updates the weights.

A program takes a run of neighbouring latents, one after the other. It sums a latent's rows of residuals and inputs to
the gradient rows of both matrices in registers, and applies Adam to them at once, so that no F x d gradient is written.
What the whole step needs of all latents, the sum of squares and Σ_f grad_b_enc[f] W_enc[f], is kept in registers too
and stored once a program. A latent of more than SEGMENT entries is divided into pieces, which other programs sum
before; the sweep adds them in order. The runs depend on F alone, and the pieces on the codes, so two steps agree bit
for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.adam_step.gpu import adam_update, step_numbers
from sae_kernels.formats.gpu import load_moment, store_moments, store_weight
from sae_kernels.latent_sweep.gpu import SEGMENT, latent_order, pieces_of
from sae_kernels.launch import launch
from sae_kernels.tuning import chunk_of, step_config

_LARGEST = tl.constexpr(3.4028234663852886e38)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def summed_entries(
    start, stop, b_atom, tokens, values, slopes, spread, centred, factor, d_in, d_out, stride_x, groups,
    HAS_SLOPES: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Σ δ x [BLOCK_X], Σ δ and factor Σ f g [BLOCK_D] over the sorted entries start:stop of one latent, fp32.

    The slope δ of an entry is loaded, or factor g · atom where f is not <= 0.
    """
    o_x = tl.arange(0, BLOCK_X)
    o_d = tl.arange(0, BLOCK_D)
    b_enc = tl.zeros((BLOCK_X,), tl.float32)
    b_dec = tl.zeros((BLOCK_D,), tl.float32)
    b_bias = tl.zeros((BLOCK_E,), tl.float32)
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        m_e = o_e < stop
        b_token = tl.load(tokens + o_e, mask=m_e, other=0).to(tl.int64)
        b_value = tl.load(values + o_e, mask=m_e, other=0.0)
        m_d = m_e[:, None] & (o_d < d_out)[None, :]
        b_g = tl.load(spread + b_token[:, None] * d_out + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
        b_dec += tl.sum(b_value[:, None] * b_g, 0)
        if HAS_SLOPES:
            b_slope = tl.load(slopes + o_e, mask=m_e, other=0.0)
        else:
            # `value <= 0` is false for NaN, which passes its gradient on as in the reference
            b_slope = tl.where((b_value <= 0) | (o_e >= stop), 0.0, factor * tl.sum(b_g * b_atom[None, :], 1))
        m_x = m_e[:, None] & (o_x < d_in)[None, :]
        o_row = (b_token // groups)[:, None] * stride_x
        b_x = tl.load(centred + o_row + o_x[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_enc += tl.sum(b_slope[:, None] * b_x, 0)
        b_bias += b_slope
    return b_enc, tl.sum(b_bias, 0), factor * b_dec


@triton.jit(do_not_specialize=["groups", "segment", "F"])
def _step_pieces(
    bounds, tokens, values, slopes, spread, centred, W_dec, part_enc, part_bias, part_dec, owner, first_piece,
    factor, d_in, d_out, stride_x, groups, segment, F,
    HAS_SLOPES: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row i of part_* = the sums over piece i of the latents that are divided."""
    i = tl.program_id(0)
    i_f = tl.load(owner + i)
    if i_f < F:
        o_x = tl.arange(0, BLOCK_X)
        o_d = tl.arange(0, BLOCK_D)
        start = tl.load(bounds + i_f) + (i - tl.load(first_piece + i_f)) * segment
        stop = tl.minimum(start + segment, tl.load(bounds + i_f + 1))
        b_atom = tl.load(W_dec + i_f.to(tl.int64) * d_out + o_d, mask=o_d < d_out, other=0.0).to(tl.float32)
        b_enc, bias, b_dec = summed_entries(
            start, stop, b_atom, tokens, values, slopes, spread, centred, factor, d_in, d_out, stride_x, groups,
            HAS_SLOPES, BLOCK_E, BLOCK_X, BLOCK_D,
        )  # fmt: skip
        tl.store(part_enc + i.to(tl.int64) * d_in + o_x, b_enc, mask=o_x < d_in)
        tl.store(part_bias + i, bias)
        tl.store(part_dec + i.to(tl.int64) * d_out + o_d, b_dec, mask=o_d < d_out)


@triton.jit(do_not_specialize=["groups", "segment", "F", "chunk"])
def _step(
    bounds, tokens, values, slopes, spread, centred, W_enc, b_enc, W_dec, m_enc, m_bias, m_dec, v_enc, v_bias, v_dec,
    copy_enc, copy_dec, place, extra_enc, extra_bias, extra_dec, part_enc, part_bias, part_dec, first_piece,
    decision, sums, squares, row_norms, factor, d_in, d_out, stride_x, groups, segment, F, chunk,
    numbers, beta1, rest1, beta2, rest2, eps,
    WRITE: tl.constexpr, TIED: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_EXTRA: tl.constexpr,
    HAS_PIECES: tl.constexpr, COPIES: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of `chunk` latents; with WRITE their Adam step, by decision[0], the scale of the gradients.

    It leaves at once where the scale is not finite or, without WRITE, where decision[1] says that no norm is needed.
    Program i stores Σ_f grad_b_enc[f] W_enc[f] (with TIED, of the old weights) in sums[i], the sum of the gradients'
    squares in squares[i], and with WRITE the largest norm of its new rows of W_enc in row_norms[i].
    """
    i = tl.program_id(0)
    scale = tl.load(decision)
    if WRITE:  # noqa: SIM108  a branch at compile time
        go = tl.abs(scale) <= _LARGEST
    else:
        go = tl.load(decision + 1) == 0
    if go:
        o_x = tl.arange(0, BLOCK_X)
        o_d = tl.arange(0, BLOCK_D)
        b_sum = tl.zeros((BLOCK_X,), tl.float32)
        square = 0.0
        longest = 0.0
        rate, root, seed = step_numbers(numbers)
        for j_f in range(0, tl.minimum(chunk, F - i * chunk)):
            # int64, and so are all offsets of rows
            i_f = i.to(tl.int64) * chunk + j_f
            start = tl.load(bounds + i_f)
            stop = tl.load(bounds + i_f + 1)
            extra = -1
            if HAS_EXTRA:
                extra = tl.load(place + i_f)
            # rows without a gradient are read only to be written
            read = WRITE | (start < stop) | (extra >= 0)
            m_x = o_x < tl.where(read, d_in, 0)
            m_d = o_d < tl.where(read, d_out, 0)
            b_atom = tl.load(W_dec + i_f * d_out + o_d, mask=m_d, other=0.0).to(tl.float32)
            rest = start
            if HAS_PIECES:
                divided = stop - start > segment
                rest = tl.where(divided, stop, start)
            g_enc, g_bias, g_dec = summed_entries(
                rest, stop, b_atom, tokens, values, slopes, spread, centred, factor, d_in, d_out, stride_x, groups,
                HAS_SLOPES, BLOCK_E, BLOCK_X, BLOCK_D,
            )  # fmt: skip
            if HAS_PIECES:
                first = tl.load(first_piece + i_f)
                for j in range(first, first + tl.where(divided, (stop - start + segment - 1) // segment, 0)):
                    # j is int64, as first_piece is
                    g_enc += tl.load(part_enc + j * d_in + o_x, mask=o_x < d_in, other=0.0)
                    g_bias += tl.load(part_bias + j)
                    g_dec += tl.load(part_dec + j * d_out + o_d, mask=o_d < d_out, other=0.0)
            if HAS_EXTRA:  # noqa: SIM102  a branch at compile time around one at run time
                if extra >= 0:
                    o_extra = extra.to(tl.int64)
                    g_enc += tl.load(extra_enc + o_extra * d_in + o_x, mask=o_x < d_in, other=0.0)
                    g_bias += tl.load(extra_bias + o_extra)
                    g_dec += tl.load(extra_dec + o_extra * d_out + o_d, mask=o_d < d_out, other=0.0)
            square += tl.sum(g_enc * g_enc, 0) + tl.sum(g_dec * g_dec, 0) + g_bias * g_bias
            if WRITE:
                # atoms first, so that fewer rows are in registers at once
                g_dec = (g_dec - tl.sum(g_dec * b_atom, 0) * b_atom) * scale
                o_f = i_f + tl.arange(0, 1)
                m_f = o_f < F
                b_m = load_moment(m_dec, o_f, o_d, d_out, m_f, m_d, False)
                b_v = load_moment(v_dec, o_f, o_d, d_out, m_f, m_d, True)
                b_atom, b_m, b_v = adam_update(b_atom, g_dec, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
                if BLOCK_X != BLOCK_D:
                    # the narrower row may lie in several warps: all have read it before one writes it
                    tl.debug_barrier()
                # moments first, whose registers are then free; offsets of a row in 32 bits, which take fewer
                b_place = (i_f * d_out + seed).to(tl.uint32) + o_d.to(tl.uint32)
                store_moments(m_dec, v_dec, b_m, b_v, o_f, o_d, d_out, b_place, m_f, m_d, 0)
                b_atom = b_atom / tl.maximum(tl.sqrt_rn(tl.sum(b_atom * b_atom, 0)), _TINY)
                b_atom = store_weight(W_dec + i_f * d_out + o_d, b_atom, b_place, m_d)
                if COPIES:
                    tl.store(copy_dec + i_f * d_out + o_d, b_atom.to(copy_dec.dtype.element_ty), mask=m_d)
            b_row = tl.load(W_enc + i_f * d_in + o_x, mask=m_x, other=0.0).to(tl.float32)
            if TIED:
                b_sum += g_bias * b_row
            if WRITE:
                b_m = load_moment(m_enc, o_f, o_x, d_in, m_f, m_x, False)
                b_v = load_moment(v_enc, o_f, o_x, d_in, m_f, m_x, True)
                b_row, b_m, b_v = adam_update(
                    b_row, g_enc * scale, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps
                )  # fmt: skip
                if BLOCK_X != BLOCK_D:
                    tl.debug_barrier()
                b_place = (i_f * d_in + seed).to(tl.uint32) + o_x.to(tl.uint32)
                store_moments(m_enc, v_enc, b_m, b_v, o_f, o_x, d_in, b_place, m_f, m_x, 0)
                b_row = store_weight(W_enc + i_f * d_in + o_x, b_row, b_place, m_x)
                longest = tl.maximum(longest, tl.sum(b_row * b_row, 0))
                if COPIES:
                    tl.store(copy_enc + i_f * d_in + o_x, b_row.to(copy_enc.dtype.element_ty), mask=m_x)
                bias = tl.load(b_enc + i_f)
                m = tl.load(m_bias + i_f)
                v = tl.load(v_bias + i_f)
                bias, m, v = adam_update(bias, g_bias * scale, m, v, beta1, rest1, beta2, rest2, rate, root, eps)
                tl.store(b_enc + i_f, bias)
                tl.store(m_bias + i_f, m)
                tl.store(v_bias + i_f, v)
        if TIED:
            tl.store(sums + i.to(tl.int64) * d_in + o_x, b_sum, mask=o_x < d_in)
        tl.store(squares + i, square)
        if WRITE:
            tl.store(row_norms + i, tl.sqrt_rn(longest))


class Prepared(NamedTuple):
    """What both passes of the sweep read besides the parameters."""

    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    chunk: int
    """Latents a program."""

    @property
    def programs(self) -> int:
        return triton.cdiv(self.arguments["F"], self.chunk)


def prepare(params: Any, forward: Any, through: Tensor | None, extra: Any) -> Prepared:
    """Sort the entries by latent, find the places of the extra rows, and sum the pieces of latents that are divided."""
    codes, width, device, segment = forward.codes, forward.codes.width, params.W_enc.device, SEGMENT
    starts = codes.offsets if forward.starts is None else forward.starts
    order, bounds, tokens = latent_order(codes.indices, starts, width)
    tokens = order // max(1, codes.values.shape[-1]) if tokens is None else tokens[order]
    values = codes.values.reshape(-1)[order].float()
    (_, d_in), d_out = params.W_enc.shape, params.W_dec.shape[1]
    config = step_config(d_in, d_out)
    centred = forward.centred
    arguments: dict[str, Any] = {
        "bounds": bounds,
        "tokens": tokens.to(torch.int32),
        "values": values,
        "slopes": values if through is None else through.reshape(-1)[order].float(),
        "spread": forward.spread,
        "centred": centred,
        "W_dec": params.W_dec,
        "factor": forward.factor,
        "d_in": d_in,
        "d_out": d_out,
        "stride_x": centred.stride(0),
        "groups": forward.groups,
        "segment": segment,
        "F": width,
    }
    blocks = {"BLOCK_E": config.rows, "BLOCK_X": config.block_x, "BLOCK_D": config.block_d}
    constants = {"HAS_SLOPES": through is not None, **blocks}
    # a token lists a latent at most once, so no latent of a small batch has more entries than that
    divided = codes.tokens > segment
    parts = dict.fromkeys(("part_enc", "part_bias", "part_dec", "first_piece"), bounds)
    if divided:
        most = 2 * values.shape[0] // segment
        owner, first_piece = pieces_of(bounds, segment, most)
        shapes = {"part_enc": (most, d_in), "part_bias": (most,), "part_dec": (most, d_out)}
        parts = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
        parts["first_piece"] = first_piece
        launch(_step_pieces, (most,), arguments | parts | {"owner": owner}, constants, warps=config.warps)
    rows = dict.fromkeys(("place", "extra_enc", "extra_bias", "extra_dec"), bounds)
    if extra is not None:
        rows = {"extra_enc": extra.W_enc, "extra_bias": extra.b_enc, "extra_dec": extra.W_dec}
        rows = {name: row.float().contiguous() for name, row in rows.items()}
        rows["place"] = torch.full((width,), -1, dtype=torch.int32, device=device)
        rows["place"][extra.rows] = torch.arange(extra.rows.shape[0], dtype=torch.int32, device=device)
    flags = {"HAS_EXTRA": extra is not None, "HAS_PIECES": divided, "TIED": forward.tied}
    return Prepared(arguments | parts | rows, constants | flags, config.warps, chunk_of(width))


def sweep(
    prepared: Prepared, params: Any, m: Any, v: Any, copies: Any, adam: dict[str, Any], decision: Tensor, write: bool
) -> tuple[Tensor, Tensor]:
    """sums [programs, d_in] and squares [programs] of a pass; zeros where it was not needed or may not write."""
    programs, device = prepared.programs, params.W_enc.device
    sums = torch.zeros(programs if prepared.constants["TIED"] else 0, params.W_enc.shape[1], device=device)
    squares = torch.zeros(programs, device=device)
    copied = write and copies is not None and copies.W_enc.dtype != params.W_enc.dtype
    weights = {"W_enc": params.W_enc, "b_enc": params.b_enc, "decision": decision, "sums": sums, "squares": squares}
    weights |= {"m_enc": m.W_enc, "m_bias": m.b_enc, "m_dec": m.W_dec}
    weights |= {"v_enc": v.W_enc, "v_bias": v.b_enc, "v_dec": v.W_dec}
    weights |= {"copy_enc": copies.W_enc if copied else params.W_enc, "copy_dec": copies.W_dec if copied else m.W_dec}
    weights["row_norms"] = torch.empty_like(squares) if copies is None else copies.row_norms
    launch(
        _step,
        (programs,),
        prepared.arguments | weights | adam | {"chunk": prepared.chunk},
        prepared.constants | {"WRITE": write, "COPIES": copied},
        warps=prepared.warps,
    )
    return sums, squares
