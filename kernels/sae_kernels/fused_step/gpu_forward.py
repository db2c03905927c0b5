"""The forward pass of the fused step in Triton, token by token: residual, squared error and, if asked for, the dots."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.gpu_product import rows_contiguous
from sae_kernels.launch import launch
from sae_kernels.tuning import sweep_config


@triton.jit
def atoms(o_e, stop, indices, W_dec, o_d, d, stride_w):
    """The atoms [BLOCK_E, BLOCK_D] of the entries o_e, fp32; zero from `stop` and d on."""
    b_index = tl.load(indices + o_e, mask=o_e < stop, other=0)
    m_w = (o_e < stop)[:, None] & (o_d < d)[None, :]
    return tl.load(W_dec + b_index[:, None] * stride_w + o_d[None, :], mask=m_w, other=0.0).to(tl.float32)


@triton.jit
def without_entries(
    b_row, start, stop, values, indices, W_dec, o_d, d, stride_w, BLOCK_E: tl.constexpr
):  # fmt: skip
    """b_row - Σ f_j w_j over the entries start:stop."""
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        b_value = tl.load(values + o_e, mask=o_e < stop, other=0.0).to(tl.float32)
        b_row -= tl.sum(b_value[:, None] * atoms(o_e, stop, indices, W_dec, o_d, d, stride_w), 0)
    return b_row


@triton.jit
def store_dots(b_row, start, stop, indices, W_dec, dots, o_d, d, stride_w, BLOCK_E: tl.constexpr):
    """dots = b_row · w_j of the entries start:stop."""
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        b_dot = tl.sum(atoms(o_e, stop, indices, W_dec, o_d, d, stride_w) * b_row[None, :], 1)
        tl.store(dots + o_e, b_dot, mask=o_e < stop)


@triton.jit(do_not_specialize=["K"])
def _compare(
    values, indices, starts, W_dec, b_dec, target, residual, squared_error, dots, d, stride_w, stride_t, K,
    CSR: tl.constexpr, DOTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Token i_n: residual = target - f W_dec - b_dec [d], the sum of its squares, and residual · w_j of its entries."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < d
    if CSR:
        start = tl.load(starts + i_n)
        stop = tl.load(starts + i_n + 1)
    else:
        start = i_n * K
        stop = start + K
    b_row = tl.load(target + i_n * stride_t + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_row -= tl.load(b_dec + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_row = without_entries(b_row, start, stop, values, indices, W_dec, o_d, d, stride_w, BLOCK_E)
    tl.store(residual + i_n * d + o_d, b_row.to(residual.dtype.element_ty), mask=m_d)
    tl.store(squared_error + i_n, tl.sum(b_row * b_row, 0))
    if DOTS:
        # the same atoms again, from the cache
        store_dots(b_row, start, stop, indices, W_dec, dots, o_d, d, stride_w, BLOCK_E)


@triton.jit(do_not_specialize=["groups"])
def _compare_nested(
    values, indices, starts, W_dec, b_dec, target, residual, squared_error, dots, spread, d, stride_w, stride_t, groups,
    DOTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The same for nested prefixes, and the rows i_n * groups + g of `spread`, as the field of StepForward."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < d
    b_row = tl.load(target + i_n * stride_t + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_row -= tl.load(b_dec + o_d, mask=m_d, other=0.0).to(tl.float32)
    share = 1.0 / groups
    error = 0.0
    for g in range(0, groups):
        i_g = i_n * groups + g
        start = tl.load(starts + i_g)
        stop = tl.load(starts + i_g + 1)
        b_row = without_entries(b_row, start, stop, values, indices, W_dec, o_d, d, stride_w, BLOCK_E)
        error += tl.sum(b_row * b_row, 0)
        tl.store(spread + i_g * d + o_d, b_row.to(spread.dtype.element_ty), mask=m_d)
    tl.store(residual + i_n * d + o_d, b_row.to(residual.dtype.element_ty), mask=m_d)
    tl.store(squared_error + i_n, error * share)
    # the rows are read back
    tl.debug_barrier()
    b_sum = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(0, groups):
        i_g = i_n * groups + groups - 1 - i
        b_sum += tl.load(spread + i_g * d + o_d, mask=m_d, other=0.0).to(tl.float32) * share
        tl.store(spread + i_g * d + o_d, b_sum.to(spread.dtype.element_ty), mask=m_d)
        if DOTS:
            start = tl.load(starts + i_g)
            stop = tl.load(starts + i_g + 1)
            store_dots(b_sum, start, stop, indices, W_dec, dots, o_d, d, stride_w, BLOCK_E)


@triton.jit(do_not_specialize=["K", "groups"])
def _dot_squares(
    values, indices, starts, W_dec, spread, enough, squares, d, stride_w, K, groups,
    CSR: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """squares[i_n] = Σ (row · w_j)² over the entries of token i_n that are not <= 0; nothing where `enough` is set."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    if tl.load(enough) == 0:
        b_square = tl.zeros((BLOCK_E,), tl.float32)
        for i_g in range(i_n * groups, i_n * groups + groups):
            if CSR:
                start = tl.load(starts + i_g)
                stop = tl.load(starts + i_g + 1)
            else:
                start = i_g * K
                stop = start + K
            b_row = tl.load(spread + i_g * d + o_d, mask=o_d < d, other=0.0).to(tl.float32)
            for i_e in range(start, stop, BLOCK_E):
                o_e = i_e + tl.arange(0, BLOCK_E)
                b_value = tl.load(values + o_e, mask=o_e < stop, other=0.0).to(tl.float32)
                b_dot = tl.sum(atoms(o_e, stop, indices, W_dec, o_d, d, stride_w) * b_row[None, :], 1)
                b_square += tl.where((b_value <= 0) | (o_e >= stop), 0.0, b_dot * b_dot)
        tl.store(squares + i_n, tl.sum(b_square, 0))


def forward(
    params: Any,
    codes: SparseCodes,
    target: Tensor,
    starts: Tensor | None,
    needs_dots: bool,
    workspace: Any,
    copies: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """residual, squared_error, dots and spread, as the fields of `StepForward`; the dots are empty if not needed.

    Atoms are read from `copies`, and rows are stored in the dtype of these (fp32 without them); sums are fp32.
    `workspace` is for the CPU: torch's allocator reuses memory on a GPU.
    """
    del workspace
    target, device = rows_contiguous(target), target.device
    W_dec = params.W_dec if copies is None else copies.W_dec
    N, d = target.shape
    groups = 1 if starts is None else (starts.shape[0] - 1) // max(N, 1)
    dtype = torch.float32 if copies is None else W_dec.dtype
    residual = torch.empty(N, d, dtype=dtype, device=device)
    spread = residual if groups == 1 else torch.empty(N * groups, d, dtype=dtype, device=device)
    squared_error = torch.empty(N, device=device)
    dots = torch.empty(codes.values.shape if needs_dots else 0, device=device)
    arguments, constants, warps = _of_entries(codes, starts, W_dec, d)
    arguments |= {"b_dec": params.b_dec, "target": target, "stride_t": target.stride(0)}
    arguments |= {"residual": residual, "squared_error": squared_error, "dots": dots}
    constants["DOTS"] = needs_dots
    if groups > 1:
        del arguments["K"], constants["CSR"]
        launch(_compare_nested, (N,), arguments | {"spread": spread, "groups": groups}, constants, warps=warps)
    else:
        launch(_compare, (N,), arguments, constants, warps=warps)
    return residual, squared_error, dots, spread


def dot_norm(params: Any, forward: Any, enough: Tensor) -> Tensor:
    """Norm of the dots of all entries that are not <= 0, 0-dim; zero where `enough` (bool [1]) is set."""
    W_dec = params.W_dec if forward.copies is None else forward.copies.W_dec
    arguments, constants, warps = _of_entries(forward.codes, forward.starts, W_dec, W_dec.shape[1])
    squares = torch.zeros(forward.codes.tokens, device=W_dec.device)
    arguments |= {"spread": forward.spread, "enough": enough, "squares": squares, "groups": forward.groups}
    launch(_dot_squares, (forward.codes.tokens,), arguments, constants, warps=warps)
    return squares.sum().sqrt()


def _of_entries(codes: SparseCodes, starts: Tensor | None, W_dec: Tensor, d: int) -> tuple[dict, dict, int]:
    """The arguments and constants that every kernel of entries takes, and its warps."""
    config = sweep_config(d)
    indices = codes.indices.contiguous()
    starts = codes.offsets if starts is None else starts
    arguments = {
        "values": codes.values.contiguous(),
        "indices": indices,
        "starts": indices if starts is None else starts.contiguous(),
        "W_dec": W_dec,
        "d": d,
        "stride_w": W_dec.stride(0),
        "K": codes.values.shape[1] if starts is None else 0,
    }
    return arguments, {"CSR": starts is not None, "BLOCK_E": config.rows, "BLOCK_D": config.block_d}, config.warps
