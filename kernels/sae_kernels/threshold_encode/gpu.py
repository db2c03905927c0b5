"""Threshold encode in Triton: the survivors (entries above their thresholds) of every bucket, then compaction to CSR.

1. `_survivors`: the product in tensor-core tiles (or `_chunk_survivors`: the vendor's, chunk by chunk). Of every bucket
   and token it writes the number of survivors and the first K' of them.
2. The total is copied to the host, once, to allocate the CSR codes.
3. `_compact`: moves every token's survivors to their places. A bucket with more than K' survivors is recomputed without
   tensor cores, and as many entries as were counted are taken, those furthest above their thresholds: so rounding
   cannot change the number of entries.

If more than DENSE of the buckets overflow (early in training), every pre-activation is written, for a part of the
tokens at a time, and torch compacts them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu_product import (
    LOWEST_KEY,
    bucket_arguments,
    bucket_constants,
    bucket_rows,
    operands,
    order_key,
    product_arguments,
    product_chunks,
    product_constants,
    product_tile,
    stored_tile,
    tile_of,
    tiles,
    value_of_key,
)
from sae_kernels.launch import device_of, launch
from sae_kernels.topk_encode.gpu import CHUNK_TOKENS, candidates, dense_part
from sae_kernels.topk_encode.gpu_select import values_of_keys
from sae_kernels.tuning import EncodeConfig, keep_all, threshold_config

DENSE = 0.05
"""Share of overflowing buckets above which the dense path is cheaper than recomputing them."""


@triton.jit
def keep_survivors(
    b_pre, bars, pairs, counts, o_n, o_f, i_first, N, F, buckets,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BUCKET: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """counts [N, buckets] and pairs [N, buckets, KEPT] of a tile from latent i_first on, as `_survivors` has them."""
    b_bar = tl.load(bars + o_f, mask=o_f < F, other=0.0)
    # not (pre > bar): a NaN survives, as in the reference
    m_below = (b_pre <= b_bar[None, :]) | (o_f >= F)[None, :] | (o_n >= N)[:, None]
    # to save registers one array says both which entries survive and their values
    b_key = tl.reshape(tl.where(m_below, LOWEST_KEY, order_key(b_pre)), (BLOCK_N, BLOCK_F // BUCKET, BUCKET))
    b_count = tl.sum((b_key != LOWEST_KEY).to(tl.int32), 2)
    o_place = tl.arange(0, BUCKET)[None, None, :]
    o_bucket = i_first // BUCKET + tl.arange(0, BLOCK_F // BUCKET)
    o_counts = o_n[:, None].to(tl.int64) * buckets + o_bucket[None, :]
    tl.store(counts + o_counts, b_count.to(tl.uint8), mask=(o_n < N)[:, None] & (o_bucket < buckets)[None, :])
    # most tiles have only a few survivors a row, so the loop ends early
    for j in range(tl.minimum(tl.max(tl.reshape(b_count, (BLOCK_N * (BLOCK_F // BUCKET),)), 0), KEPT)):
        b_place = tl.min(tl.where(b_key != LOWEST_KEY, o_place, BUCKET), 2)
        m_here = o_place == b_place[:, :, None]
        b_first = tl.max(tl.where(m_here, b_key, LOWEST_KEY), 2)
        b_key = tl.where(m_here, LOWEST_KEY, b_key)
        b_pair = (b_first.to(tl.int64) << 8) | b_place.to(tl.int64)
        tl.store(pairs + o_counts * KEPT + j, b_pair, mask=j < b_count)


@triton.jit(do_not_specialize=["N", "F", "buckets", "group"])
def _survivors(
    x, W_enc, b_enc, bars, pairs, counts, N, F, d, stride_x, stride_w, buckets, group,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    BUCKET: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """counts [N, buckets] of the entries not <= their bars, and pairs [N, buckets, KEPT], the first of them.

    A pair is the key of the value and, in the lowest byte, the place in the bucket: one memory sector instead of two.
    """
    i_n, i_f = tile_of(tl.program_id(0), N, F, group, BLOCK_N, BLOCK_F)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_f = i_f * BLOCK_F + tl.arange(0, BLOCK_F)
    b_pre = product_tile(
        x, W_enc, b_enc, o_n, o_f, N, F, d, stride_x, stride_w, BLOCK_N, BLOCK_F, BLOCK_D, PRECISION
    )  # fmt: skip
    keep_survivors(b_pre, bars, pairs, counts, o_n, o_f, i_f * BLOCK_F, N, F, buckets, BLOCK_N, BLOCK_F, BUCKET, KEPT)


@triton.jit(do_not_specialize=["N", "F", "buckets", "first"])
def _chunk_survivors(
    pre, b_enc, bars, pairs, counts, N, F, buckets, first, columns,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BUCKET: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The same for `columns` latents from `first` on, whose product without b_enc is `pre`."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    i_first = first + tl.program_id(1) * BLOCK_F
    o_f = first + o_c
    b_pre = stored_tile(pre, b_enc, o_n, o_c, first, N, columns)
    keep_survivors(b_pre, bars, pairs, counts, o_n, o_f, i_first, N, F, buckets, BLOCK_N, BLOCK_F, BUCKET, KEPT)


@triton.jit(do_not_specialize=["F", "buckets"])
def _compact(
    x, W_enc, b_enc, bars, pairs, counts, offsets, out_values, out_indices, F, d, stride_x, stride_w, buckets,
    BUCKET: tl.constexpr, KEPT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out_values, out_indices [nnz] from offsets[i_n] on = the survivors of token i_n, in the order of latents."""
    i_n = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + i_n)
    for i_b in range(0, buckets, BLOCK_B):
        o_b = i_b + tl.arange(0, BLOCK_B)
        b_count = tl.load(counts + i_n * buckets + o_b, mask=o_b < buckets, other=0).to(tl.int32)
        o_out = start + tl.cumsum(b_count, 0) - b_count
        o_kept = (i_n * buckets + o_b) * KEPT
        for j in tl.static_range(KEPT):
            m_j = (j < b_count) & (b_count <= KEPT)
            b_pair = tl.load(pairs + o_kept + j, mask=m_j, other=0)
            b_value = value_of_key((b_pair >> 8).to(tl.int32))
            tl.store(out_values + o_out + j, b_value.to(out_values.dtype.element_ty), mask=m_j)
            tl.store(out_indices + o_out + j, o_b * BUCKET + (b_pair & 255), mask=m_j)
        b_over = tl.where(b_count > KEPT, o_b, -1)
        for _ in range(tl.sum((b_count > KEPT).to(tl.int32), 0)):
            bucket = tl.max(b_over, 0)
            count = tl.sum(tl.where(o_b == bucket, b_count, 0), 0)
            o_bucket = tl.sum(tl.where(o_b == bucket, o_out, 0), 0)
            b_over = tl.where(b_over == bucket, -1, b_over)
            o_place = tl.arange(0, BUCKET)
            o_f = bucket * BUCKET + o_place
            b_pre = bucket_rows(x, W_enc, b_enc, i_n, o_f, F, d, stride_x, stride_w, BUCKET, BLOCK_D)
            b_bar = tl.load(bars + o_f, mask=o_f < F, other=0.0)
            # rank by how far an entry exceeds its bar; NaN first, places beyond F last
            b_over_bar = tl.where(b_pre == b_bar, 0.0, b_pre - b_bar)
            b_over_bar = tl.where(b_over_bar != b_over_bar, float("inf"), b_over_bar)
            b_over_bar = tl.where(o_f < F, b_over_bar, float("-inf"))
            m_before = (b_over_bar[None, :] > b_over_bar[:, None]) | (
                (b_over_bar[None, :] == b_over_bar[:, None]) & (o_place[None, :] < o_place[:, None])
            )
            m_in = tl.sum(m_before.to(tl.int32), 1) < count
            o_in = o_bucket + tl.cumsum(m_in.to(tl.int32), 0) - 1
            tl.store(out_values + o_in, b_pre.to(out_values.dtype.element_ty), mask=m_in)
            tl.store(out_indices + o_in, o_f.to(tl.int64), mask=m_in)
        start += tl.sum(b_count, 0)


def threshold_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    margin: float = 0.0,
    b_pre: Tensor | None = None,
    *,
    config: EncodeConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets of every entry of W_enc (x - b_pre) + b_enc that is not <= theta - margin.

    The product takes its inputs in the dtype that x and W_enc promote to; values have this dtype, and indices ascend in
    every token. `config` are the launch parameters, by default picked from the sizes and the device.
    """
    x, W_enc = operands(x, W_enc, b_pre)
    bars = (theta.detach().float() - margin).contiguous()
    config = config or threshold_config(x.shape[0], *W_enc.shape, x.dtype, device_of(x))
    return above_bars(x, W_enc, b_enc.contiguous(), bars, config, x.dtype)


def above_bars(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, bars: Tensor, config: EncodeConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """values of `dtype`, indices, offsets of every entry of x W_enc^T + b_enc that is not <= bars [F] fp32."""
    pairs, counts = survivors(x, W_enc, b_enc, bars, config)
    offsets = torch.nn.functional.pad(counts.sum(1, dtype=torch.int64).cumsum(0), (1, 0))
    nnz, overflowing = torch.stack([offsets[-1], (counts > config.kept).sum()]).tolist()
    if overflowing > DENSE * counts.numel():
        return _dense(x, W_enc, b_enc, bars, config, dtype)
    values, indices = x.new_empty(nnz, dtype=dtype), torch.empty(nnz, dtype=torch.int64, device=x.device)
    compact(x, W_enc, b_enc, bars, pairs, counts, offsets, values, indices, config)
    return values, indices, offsets


def survivors(x: Tensor, W_enc: Tensor, b_enc: Tensor, bars: Tensor, config: EncodeConfig) -> tuple[Tensor, Tensor]:
    """pairs int64 [N, buckets, K'] of the first survivors, counts uint8 [N, buckets] of all."""
    N, F = x.shape[0], W_enc.shape[0]
    buckets = triton.cdiv(F, config.bucket)
    pairs = torch.empty(N, buckets, config.kept, dtype=torch.int64, device=x.device)
    counts = torch.empty(N, buckets, dtype=torch.uint8, device=x.device)
    arguments = {"bars": bars, "pairs": pairs, "counts": counts, "buckets": buckets}
    if config.vendor:
        blocks = {"BLOCK_N": CHUNK_TOKENS, "BLOCK_F": config.block_f} | bucket_constants(config)
        for first, last, pre in product_chunks(x, W_enc, config, device_of(x).cache):
            chunk = {"pre": pre, "b_enc": b_enc, "N": N, "F": F, "first": first, "columns": last - first}
            grid = triton.cdiv(N, CHUNK_TOKENS), triton.cdiv(last - first, config.block_f)
            launch(_chunk_survivors, grid, chunk | arguments, blocks, warps=4)
        return pairs, counts
    launch(
        _survivors,
        tiles(N, F, config),
        product_arguments(x, W_enc, b_enc) | arguments | {"group": config.group},
        product_constants(x, config),
        warps=config.warps,
        stages=config.stages,
    )
    return pairs, counts


def compact(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    bars: Tensor,
    pairs: Tensor,
    counts: Tensor,
    offsets: Tensor,
    out_values: Tensor,
    out_indices: Tensor,
    config: EncodeConfig,
) -> None:
    """Fill the values and indices [nnz] of CSR codes from the results of `survivors`."""
    launch(
        _compact,
        (x.shape[0],),
        {"x": x, "W_enc": W_enc, "b_enc": b_enc, "bars": bars, "pairs": pairs, "counts": counts}
        | {"offsets": offsets, "out_values": out_values, "out_indices": out_indices, "buckets": counts.shape[1]}
        | bucket_arguments(x, W_enc),
        bucket_constants(config) | {"BLOCK_B": 256, "BLOCK_D": 32},
    )


def _dense(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, bars: Tensor, config: EncodeConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The same codes from all pre-activations, a part of the tokens at a time."""
    parts = [(x.new_empty(0, dtype=dtype), *(torch.empty(2, 0, dtype=torch.int64, device=x.device)))]
    for pre in dense_parts(x, W_enc, b_enc, config):
        kept = ~(pre <= bars)
        parts.append((pre[kept].to(dtype), kept.nonzero()[:, 1], kept.sum(1)))
    values, indices, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    return values, indices, torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def dense_parts(x: Tensor, W_enc: Tensor, b_enc: Tensor, config: EncodeConfig):
    """Yield the pre-activations fp32 [part, F] of one part of the tokens after the other."""
    config = keep_all(config)
    part = dense_part(W_enc.shape[0], config)
    for start in range(0, x.shape[0], part):
        keys, _ = candidates(x[start : start + part], W_enc, b_enc, config)
        yield values_of_keys(keys.flatten(1)[:, : W_enc.shape[0]])
