"""Top-k encode in Triton: exact, without storing the N x F pre-activations.

1. `_candidates`: the product in tensor-core tiles (or `_chunk_candidates`: the vendor's product, chunk by chunk). The
   latents are divided into buckets of 32, 64 or 128 neighbours. Of every bucket and token only the K' largest entries
   are written: an int32 key with the order of the values, and the place inside the bucket, five bytes in all.
2. `select` (gpu_select.py): the k largest of a token's F / bucket * K' candidates.
3. `_repair`: checks the certificate below; where it fails, recomputes the failing buckets as a whole.
4. `_order`: sorts the k entries, largest first, and writes values and indices.

Nothing is copied to the host in between, so the launches queue up.

**Certificate.** Order a token's entries by (value descending, index ascending); no two are equal. A bucket keeps its
K' first entries, c_1 < ... < c_K' in this order (first is best), so an entry it hides comes after c_K'. Let S be the k
first of all candidates and t the last of S. If c_K' is t or comes after t, then every hidden entry of that bucket comes
after t, and is not among the k first. If this holds in every bucket, S is exact. A bucket violates it only if c_K' lies
in S and is not t. So S alone decides: *a token fails iff S contains, other than as its last member, an entry that is
the K'-th kept of its bucket.* Comparing values alone would be wrong under ties: a hidden entry that equals t and has a
lower index comes before t, and after c_K' of the same value. In the order of pairs c_K' then comes before t, and the
token fails, as it must.

**Repair.** A hidden entry among the k first comes before t, so it lies in a bucket whose c_K' comes before t, a failing
bucket. A token has at most (k-1)/K' of these, known from S. All their entries are recomputed, those that were hidden
join S, and the k first of the union are exact: t can only have moved forward, so no other bucket fails now. The repair
multiplies in fp32 without tensor cores, and agrees with the tile up to rounding.

Candidates are stored bucket by bucket, the best first in each, so equal values are in the order of their indices; the
second stage keeps this order.

NaN comes before +inf, the lowest index first, and is returned as NaN, as in the reference.
"""

from __future__ import annotations

import functools
from dataclasses import replace

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
from sae_kernels.topk_encode.gpu_select import select, sort_all
from sae_kernels.tuning import EncodeConfig, encode_config

LARGEST_K = 1024
"""For a larger k torch.sort sorts all keys, a small part of the cost when the codes are nearly dense."""

CHUNK_TOKENS = 32
"""Tokens a program that reads a chunk of the vendor's product."""

DENSE_BYTES = 256 << 20
"""Most memory for the keys: if all entries have to be kept (k close to F), the tokens are encoded in parts."""


@triton.jit
def keep_largest(
    b_pre, keys, places, o_n, o_f, i_first, N, F, buckets,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BUCKET: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """keys, places [N, buckets, KEPT] = the KEPT largest of every bucket of a tile from latent i_first on."""
    b_key = tl.where((o_f < F)[None, :], order_key(b_pre), LOWEST_KEY)
    if KEPT == BUCKET:
        p_key = keys + o_n[:, None].to(tl.int64) * (buckets * BUCKET) + o_f[None, :]
        tl.store(p_key, b_key, mask=(o_n < N)[:, None] & (o_f < buckets * BUCKET)[None, :])
    else:
        b_key = tl.reshape(b_key, (BLOCK_N, BLOCK_F // BUCKET, BUCKET))
        o_place = tl.arange(0, BUCKET)[None, None, :]
        o_bucket = i_first // BUCKET + tl.arange(0, BLOCK_F // BUCKET)
        o_kept = (o_n[:, None].to(tl.int64) * buckets + o_bucket[None, :]) * KEPT
        m_kept = (o_n < N)[:, None] & (o_bucket < buckets)[None, :]
        for j in tl.static_range(KEPT):
            b_best = tl.max(b_key, 2)
            # the lowest place among equals; its entry is then removed
            b_place = tl.min(tl.where(b_key == b_best[:, :, None], o_place, BUCKET - 1), 2)
            tl.store(keys + o_kept + j, b_best, mask=m_kept)
            tl.store(places + o_kept + j, b_place.to(tl.uint8), mask=m_kept)
            b_key = tl.where(o_place == b_place[:, :, None], LOWEST_KEY, b_key)


@triton.jit(do_not_specialize=["N", "F", "buckets", "group"])
def _candidates(
    x, W_enc, b_enc, keys, places, N, F, d, stride_x, stride_w, buckets, group,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    BUCKET: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """keys, places [N, buckets, KEPT] = the KEPT largest of every bucket of x W_enc^T + b_enc, best first."""
    i_n, i_f = tile_of(tl.program_id(0), N, F, group, BLOCK_N, BLOCK_F)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_f = i_f * BLOCK_F + tl.arange(0, BLOCK_F)
    b_pre = product_tile(
        x, W_enc, b_enc, o_n, o_f, N, F, d, stride_x, stride_w, BLOCK_N, BLOCK_F, BLOCK_D, PRECISION
    )  # fmt: skip
    keep_largest(b_pre, keys, places, o_n, o_f, i_f * BLOCK_F, N, F, buckets, BLOCK_N, BLOCK_F, BUCKET, KEPT)


@triton.jit(do_not_specialize=["N", "F", "buckets", "first"])
def _chunk_candidates(
    pre, b_enc, keys, places, N, F, buckets, first, columns,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BUCKET: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The same for `columns` latents from `first` on, whose product without b_enc is `pre`."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    i_first = first + tl.program_id(1) * BLOCK_F
    o_f = first + o_c
    b_pre = stored_tile(pre, b_enc, o_n, o_c, first, N, columns)
    keep_largest(b_pre, keys, places, o_n, o_f, i_first, N, F, buckets, BLOCK_N, BLOCK_F, BUCKET, KEPT)


@triton.jit
def _rank_pair(b_key, b_tie):
    """int64 that orders by key, the lowest tie-breaker first among equals."""
    return (b_key.to(tl.int64) << 32) | (0x7FFFFFFF - b_tie).to(tl.int64)


@triton.jit(do_not_specialize=["F", "buckets", "k"])
def _repair(
    x, W_enc, b_enc, places, keys, positions, failures, F, d, stride_x, stride_w, buckets, k,
    BUCKET: tl.constexpr, KEPT: tl.constexpr, LENGTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Check the certificate of token i_n; if it fails, overwrite its keys and positions [k] with the exact ones.

    A repaired token's positions are -1 - latent. LENGTH is a power of two, at least k and at least BUCKET.
    """
    i_n = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, LENGTH)
    b_key = tl.load(keys + i_n * k + o_k, mask=o_k < k, other=LOWEST_KEY)
    b_position = tl.load(positions + i_n * k + o_k, mask=o_k < k, other=0)
    # among equal keys positions have the order of the latents, so they can break ties in place of these
    b_pair = tl.where(o_k < k, _rank_pair(b_key, b_position), 0x7FFFFFFFFFFFFFFF)
    m_fail = (o_k < k) & (b_position % KEPT == KEPT - 1) & (b_pair != tl.min(b_pair, 0))
    n_fail = tl.sum(m_fail.to(tl.int32), 0)
    if n_fail > 0:
        tl.atomic_add(failures, 1)
        b_failing = tl.where(m_fail, b_position // KEPT, -1)
        b_place = tl.load(places + i_n * buckets * KEPT + b_position, mask=o_k < k, other=0).to(tl.int32)
        b_latent = (b_position // KEPT) * BUCKET + b_place
        b_set = tl.where(o_k < k, _rank_pair(b_key, b_latent), -0x7FFFFFFFFFFFFFFF - 1)
        for _ in range(n_fail):
            bucket = tl.max(b_failing, 0)
            b_failing = tl.where(b_failing == bucket, -1, b_failing)
            o_f = bucket * BUCKET + o_k
            m_new = (o_k < BUCKET) & (o_f < F)
            b_sum = bucket_rows(
                x, W_enc, b_enc, i_n, tl.where(m_new, o_f, F), F, d, stride_x, stride_w, LENGTH, BLOCK_D
            )
            for j in tl.static_range(KEPT):
                m_new &= o_k != tl.load(places + (i_n * buckets + bucket) * KEPT + j).to(tl.int32)
            b_new = tl.where(m_new, _rank_pair(order_key(b_sum), o_f), -0x7FFFFFFFFFFFFFFF - 1)
            # of one descending and one ascending list, the larger at each place are the LENGTH largest of both
            b_set = tl.maximum(tl.sort(b_set, descending=True), tl.sort(b_new))
        b_set = tl.sort(b_set, descending=True)
        # other threads may still be reading the old entries
        tl.debug_barrier()
        tl.store(keys + i_n * k + o_k, (b_set >> 32).to(tl.int32), mask=o_k < k)
        tl.store(positions + i_n * k + o_k, (b_set & 0x7FFFFFFF).to(tl.int32) - 0x7FFFFFFF - 1, mask=o_k < k)


@triton.jit(do_not_specialize=["buckets", "k"])
def _order(
    keys, positions, places, values, indices, buckets, k,
    BUCKET: tl.constexpr, KEPT: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """values, indices of token i_n [k] = relu of its selected entries, largest first. LENGTH >= k."""
    i_n = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, LENGTH)
    b_key = tl.load(keys + i_n * k + o_k, mask=o_k < k, other=LOWEST_KEY)
    b_position = tl.load(positions + i_n * k + o_k, mask=o_k < k, other=0)
    m_stored = (o_k < k) & (b_position >= 0)
    b_latent = b_position
    if KEPT < BUCKET:
        b_place = tl.load(places + i_n * buckets * KEPT + b_position, mask=m_stored, other=0).to(tl.int32)
        b_latent = tl.where(b_position < 0, -1 - b_position, (b_position // KEPT) * BUCKET + b_place)
    # among equal keys of a row positions have the order of the latents, repaired or not
    b_tie = tl.where(b_position < 0, b_latent, b_position)
    b_pair = _rank_pair(b_key, b_tie)
    b_rank = tl.zeros((LENGTH,), tl.int32)
    for i_k in range(0, k, STEP):
        o_other = i_k + tl.arange(0, STEP)
        b_other_key = tl.load(keys + i_n * k + o_other, mask=o_other < k, other=LOWEST_KEY)
        b_other = tl.load(positions + i_n * k + o_other, mask=o_other < k, other=0)
        b_other_pair = _rank_pair(b_other_key, tl.where(b_other < 0, -1 - b_other, b_other))
        m_before = (b_other_pair[None, :] > b_pair[:, None]) & (o_other < k)[None, :]
        b_rank += tl.sum(m_before.to(tl.int32), 1)
    b_value = value_of_key(b_key)
    # not maximum(), which may drop a NaN
    b_value = tl.where(b_value < 0, 0.0, b_value)
    o_out = i_n * k + b_rank
    tl.store(values + o_out, b_value.to(values.dtype.element_ty), mask=o_k < k)
    tl.store(indices + o_out, b_latent.to(tl.int64), mask=o_k < k)


@functools.cache
def _counter(device: torch.device) -> Tensor:
    """int32 [1] on the device: the number of tokens repaired since the process started."""
    return torch.zeros(1, dtype=torch.int32, device=device)


def topk_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_pre: Tensor | None = None,
    *,
    config: EncodeConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] = relu of the k largest of W_enc (x - b_pre) + b_enc, the lowest index first among equals.

    The product takes its inputs in the dtype that x and W_enc promote to and sums in fp32; the k largest are selected
    from these sums. `config` are the launch parameters, by default picked from the sizes and the device.
    """
    x, W_enc = operands(x, W_enc, b_pre)
    (N, d), F = x.shape, W_enc.shape[0]
    config = config or encode_config(N, F, d, k, x.dtype, device_of(x))
    if k > LARGEST_K:
        config = replace(config, kept=config.bucket)
    values = x.new_empty(N, k)
    indices = torch.empty(N, k, dtype=torch.int64, device=x.device)
    part = max(1, N)
    if config.kept == config.bucket:
        part = dense_part(F, config)
    for start in range(0, N, part):
        rows = slice(start, start + part)
        _encode_part(x[rows], W_enc, b_enc.contiguous(), k, config, values[rows], indices[rows])
    return values, indices


def dense_part(F: int, config: EncodeConfig) -> int:
    """Number of tokens encoded at a time if all entries are kept."""
    return max(config.block_n, DENSE_BYTES // (4 * triton.cdiv(F, config.bucket) * config.bucket))


def candidates(x: Tensor, W_enc: Tensor, b_enc: Tensor, config: EncodeConfig) -> tuple[Tensor, Tensor]:
    """keys int32 and places uint8 [N, buckets, K'] of the largest of every bucket; if all are kept, places is keys."""
    N, F = x.shape[0], W_enc.shape[0]
    keys = torch.empty(N, triton.cdiv(F, config.bucket), config.kept, dtype=torch.int32, device=x.device)
    places = keys if config.kept == config.bucket else torch.empty_like(keys, dtype=torch.uint8)
    arguments = {"keys": keys, "places": places, "buckets": keys.shape[1]}
    if config.vendor:
        blocks = {"BLOCK_N": CHUNK_TOKENS, "BLOCK_F": config.block_f} | bucket_constants(config)
        for first, last, pre in product_chunks(x, W_enc, config, device_of(x).cache):
            chunk = {"pre": pre, "b_enc": b_enc, "N": N, "F": F, "first": first, "columns": last - first}
            grid = triton.cdiv(N, CHUNK_TOKENS), triton.cdiv(last - first, config.block_f)
            launch(_chunk_candidates, grid, chunk | arguments, blocks, warps=4)
        return keys, places
    launch(
        _candidates,
        tiles(N, F, config),
        product_arguments(x, W_enc, b_enc) | arguments | {"group": config.group},
        product_constants(x, config),
        warps=config.warps,
        stages=config.stages,
    )
    return keys, places


def _encode_part(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, config: EncodeConfig, values: Tensor, indices: Tensor
) -> None:
    """Fill values and indices [N, k] for x [N, d]."""
    N = x.shape[0]
    keys, places = candidates(x, W_enc, b_enc, config)
    buckets = keys.shape[1]
    if k > LARGEST_K:
        sort_all(keys.view(N, -1), k, values, indices)
        return
    largest_keys, positions = select(keys.view(N, -1), k, config.chunk)
    selected = {"keys": largest_keys, "positions": positions, "places": places, "buckets": buckets, "k": k}
    if config.kept < config.bucket:
        length = max(triton.next_power_of_2(k), config.bucket)
        launch(
            _repair,
            (N,),
            {"x": x, "W_enc": W_enc, "b_enc": b_enc, "failures": _counter(x.device)}
            | selected
            | bucket_arguments(x, W_enc),
            bucket_constants(config) | {"LENGTH": length, "BLOCK_D": 32 if length <= 128 else 16},
        )
    length = triton.next_power_of_2(k)
    warps = max(1, length // 64)
    launch(
        _order,
        (N,),
        {"values": values, "indices": indices} | selected,
        bucket_constants(config) | {"LENGTH": length, "STEP": min(length, 32 * 32 * warps // length)},
        warps=warps,
    )
