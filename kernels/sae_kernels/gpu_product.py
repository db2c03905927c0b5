"""The tile of pre-activations that the three encodes share, and the integer keys by which values are compared.

There are two ways to make the product. In the fused one a program computes the tile of BLOCK_N tokens and BLOCK_F
latents in registers; in the other the vendor's library multiplies a chunk of latents after the other into one buffer of
about the size of the cache, and a program reads a tile of that (`product_chunks`). In both the epilogue of each encode
stores only the entries that it keeps: the largest, or those above a threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.tuning import EncodeConfig

# smaller than the key of every number, so that padding is selected last
LOWEST_KEY = tl.constexpr(-(2**31))


@triton.jit
def order_key(b_value):
    """int32 that orders as fp32 does: NaN above +inf (as in torch.sort), -0 equal to +0.

    The bits of a non-negative float already order as integers; those of a negative one order backwards, so all but
    the sign are flipped.
    """
    b_bits = (b_value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(b_value != b_value, 0x7FFFFFFF, b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF))


@triton.jit
def value_of_key(b_key):
    """The fp32 value of an order key; NaN comes back as NaN."""
    return (b_key ^ ((b_key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def tile_of(i_program, N, F, group, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr):
    """(row tile, latent tile) of a program: all row tiles of a group, then the next latent tile.

    The group's rows of x stay in the L2 cache while W_enc is read once.
    """
    n_n = tl.cdiv(N, BLOCK_N)
    n_f = tl.cdiv(F, BLOCK_F)
    i_group = i_program // (group * n_f)
    i_first = i_group * group
    size = tl.minimum(n_n - i_first, group)
    i_inside = i_program % (group * n_f)
    return i_first + i_inside % size, i_inside // size


@triton.jit
def product_tile(
    x, W_enc, b_enc, o_n, o_f, N, F, d, stride_x, stride_w,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x[o_n] W_enc[o_f]^T + b_enc[o_f] in fp32 [BLOCK_N, BLOCK_F]."""
    o_d = tl.arange(0, BLOCK_D)
    m_n = (o_n < N)[:, None]
    m_f = (o_f < F)[None, :]
    p_x = x + o_n[:, None].to(tl.int64) * stride_x + o_d[None, :]
    p_w = W_enc + o_f[None, :].to(tl.int64) * stride_w + o_d[:, None]
    b_pre = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    for i_d in range(0, d, BLOCK_D):
        b_x = tl.load(p_x, mask=m_n & (o_d < d - i_d)[None, :], other=0.0)
        b_w = tl.load(p_w, mask=m_f & (o_d < d - i_d)[:, None], other=0.0)
        b_pre = tl.dot(b_x, b_w, b_pre, input_precision=PRECISION)
        p_x += BLOCK_D
        p_w += BLOCK_D
    return b_pre + tl.load(b_enc + o_f, mask=o_f < F, other=0.0).to(tl.float32)[None, :]


@triton.jit
def stored_tile(pre, b_enc, o_n, o_c, first, N, columns):
    """Columns o_c of a chunk pre [N, columns] of a product, plus b_enc from `first` on, fp32 [BLOCK_N, BLOCK_F]."""
    m = (o_n < N)[:, None] & (o_c < columns)[None, :]
    b_pre = tl.load(pre + o_n[:, None].to(tl.int64) * columns + o_c[None, :], mask=m, other=0.0)
    return b_pre + tl.load(b_enc + first + o_c, mask=o_c < columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def bucket_rows(
    x, W_enc, b_enc, i_n, o_f, F, d, stride_x, stride_w, LATENTS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x[i_n] W_enc[o_f]^T + b_enc[o_f] in fp32 [LATENTS], without tensor cores: recomputes a whole bucket."""
    o_d = tl.arange(0, BLOCK_D)
    m_f = (o_f < F)[:, None]
    b_sum = tl.zeros((LATENTS,), tl.float32)
    for i_d in range(0, d, BLOCK_D):
        m_d = o_d < d - i_d
        b_x = tl.load(x + i_n.to(tl.int64) * stride_x + i_d + o_d, mask=m_d, other=0.0).to(tl.float32)
        p_w = W_enc + o_f[:, None].to(tl.int64) * stride_w + (i_d + o_d)[None, :]
        b_w = tl.load(p_w, mask=m_f & m_d[None, :], other=0.0).to(tl.float32)
        b_sum += tl.sum(b_w * b_x[None, :], 1)
    return b_sum + tl.load(b_enc + o_f, mask=o_f < F, other=0.0).to(tl.float32)


def product_chunks(x: Tensor, W_enc: Tensor, config: EncodeConfig, cache: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first latent, one past the last, x W_enc[first:last]^T in fp32 [N, last - first]) by the vendor's product.

    All chunks share one buffer, of at most six tenths of the device's `cache` where that leaves tiles enough.
    """
    (N, _), F = x.shape, W_enc.shape[0]
    tiles_wide = max(4, cache * 6 // 10 // (4 * max(1, N) * config.block_f))
    columns = min(tiles_wide * config.block_f, triton.cdiv(F, config.block_f) * config.block_f)
    buffer = torch.empty(N * columns, device=x.device)
    for first in range(0, F, columns):
        last = min(first + columns, F)
        out = buffer[: N * (last - first)].view(N, last - first)
        rows = W_enc[first:last].T
        if x.is_cuda and x.dtype != torch.float32:
            # sums in fp32, as in the fused product
            torch.ops.aten.mm.dtype_out(x, rows, torch.float32, out=out)
        else:
            torch.mm(x.float(), rows.float(), out=out)
        yield first, last, out


def rows_contiguous(tensor: Tensor) -> Tensor:
    """`tensor` [rows, columns] with a column stride of 1; the row stride may be any."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] <= 1 else tensor.contiguous()


def operands(x: Tensor, W_enc: Tensor, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """x - b_pre [N, d] and W_enc [F, d] in the dtype that they promote to, with a column stride of 1.

    The difference is rounded to that dtype once. The subtraction is a pass over [N, d], cheap beside the product.

    Raises:
        ValueError: a dtype other than fp32, bf16 and fp16.
    """
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"expected x and W_enc in fp32, bf16 or fp16; got {x.dtype} and {W_enc.dtype}")
    centred = x if b_pre is None else x - b_pre
    return rows_contiguous(centred.to(dtype)), rows_contiguous(W_enc.to(dtype))


def precision_of(x: Tensor) -> str:
    """tf32 for fp32 inputs if torch is set to allow it (`set_float32_matmul_precision`), else exact arithmetic."""
    return "tf32" if x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def product_arguments(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> dict[str, Any]:
    """The run-time arguments of a kernel that computes product tiles."""
    return {"x": x, "W_enc": W_enc, "b_enc": b_enc, "N": x.shape[0]} | bucket_arguments(x, W_enc)


def bucket_arguments(x: Tensor, W_enc: Tensor) -> dict[str, Any]:
    """The sizes and strides for a kernel that recomputes whole buckets."""
    return {"F": W_enc.shape[0], "d": x.shape[1], "stride_x": x.stride(0), "stride_w": W_enc.stride(0)}


def product_constants(x: Tensor, config: EncodeConfig) -> dict[str, Any]:
    """The compile-time arguments of a kernel that computes product tiles."""
    blocks = {"BLOCK_N": config.block_n, "BLOCK_F": config.block_f, "BLOCK_D": config.block_d}
    return blocks | {"PRECISION": precision_of(x)} | bucket_constants(config)


def bucket_constants(config: EncodeConfig) -> dict[str, Any]:
    """The size of a bucket and the number of entries kept of it."""
    return {"BUCKET": config.bucket, "KEPT": config.kept}


def tiles(N: int, F: int, config: EncodeConfig) -> tuple[int]:
    """The grid of a kernel that computes product tiles."""
    return (triton.cdiv(N, config.block_n) * triton.cdiv(F, config.block_f),)
