"""Top-k encode on the CPU: the product in tiles that stay in cache, and a scan that skips what cannot win.

The product of a tile of tokens and a tile of latents goes into one reused buffer that stays in the L3 cache. A first
look at a token's row takes the maximum over each of 64 interleaved lanes of latents; the k-th largest of these maxima
is a bar that at least k latents reach, so nothing below it can be among the k best. A second look compares the row
with the bar, 64 latents at a time, and appends the few that reach it to a list. Both looks are a vector instruction
for every eight latents, and together a token lists about three times k. A list that is full is cut back to its k best.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from sae_kernels.buffers import scratch
from sae_kernels.jit import jit, prange, sync_threads

TILE_TOKENS = 2048
# of the product's buffer: small enough for the L3 cache, large enough for the product to run at full speed
TILE_BYTES = 8 << 20
# of the candidate lists of one token tile; a large k means fewer tokens a tile
LIST_BYTES = 16 << 20
# latents compared at once; a mask of the outcomes fills one 64-bit integer
BLOCK = 64
MAX_LANES = 1024
BISECTIONS = 8



def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """See op.py; x [N, d], W_enc [F, d], b_enc [F], b_pre [d] or None -> values [N, k], indices [N, k] int64."""
    sync_threads()
    tokens, width = x.shape[0], W_enc.shape[0]
    values = torch.empty(tokens, k, dtype=torch.float32)
    indices = torch.empty(tokens, k, dtype=torch.int64)
    centred = centre(x, b_pre)
    encode_into(values, indices, centred, W_enc, b_enc)
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    assert indices.shape == (tokens, k) and k <= width
    return values.to(dtype), indices


def centre(x: Tensor, b_pre: Tensor | None) -> Tensor:
    """x - b_pre in fp32, contiguous; in scratch memory unless it is x itself."""
    if b_pre is None and x.dtype == torch.float32 and x.is_contiguous():
        return x.detach()
    out = scratch().get("encode.centred", tuple(x.shape))
    out.copy_(x.detach())
    return out if b_pre is None else out.sub_(b_pre.detach())


def encode_into(values: Tensor, indices: Tensor, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> None:
    """Fill values and indices [N, k] with the codes of `centred` [N, d] fp32."""
    tokens, k = values.shape
    width = W_enc.shape[0]
    # lanes: a multiple of BLOCK, at least 4/3 k, else the bar is too low to be of use; 0 for none
    lanes = -(-4 * k // (3 * BLOCK)) * BLOCK
    lanes = lanes if lanes <= min(MAX_LANES, width // 2) else 0
    room = min(width, max(4 * k, k + 96))
    rows = max(1, min(TILE_TOKENS, tokens, LIST_BYTES // (8 * room)))
    columns = min(width, max(TILE_BYTES // (4 * rows), 256))
    weights, bias = W_enc.detach(), b_enc.detach().float().contiguous().numpy()
    memory = scratch()
    tile = memory.get("encode.tile", (rows * columns,))
    cast = None if weights.dtype == torch.float32 else memory.get("encode.cast", (columns, weights.shape[1]))
    lists = memory.get("encode.lists", (rows, room), torch.int64).numpy()
    counts = memory.get("encode.counts", (rows,), torch.int64)
    bars = memory.get("encode.bars", (rows,))
    maxima = memory.get("encode.maxima", (rows, lanes))
    out_values, out_indices = values.numpy(), indices.numpy()
    for start in range(0, tokens, rows):
        block = centred[start : start + rows]
        n = block.shape[0]
        counts.zero_()
        bars.fill_(-math.inf)
        maxima.fill_(-math.inf)
        for first in range(0, width, columns):
            part = weights[first : first + columns]
            if cast is not None:
                part = cast[: part.shape[0]].copy_(part)
            product = tile[: n * part.shape[0]].view(n, part.shape[0])
            torch.mm(block, part.t(), out=product)
            _scan(
                product.numpy(), bias[first : first + columns], first, k,
                lists, counts.numpy(), bars.numpy(), maxima.numpy(),
            )  # fmt: skip
        _finish(lists, counts.numpy(), bars.numpy(), k, out_values[start : start + n], out_indices[start : start + n])


def _load(context, builder, kind, array, start):
    """BLOCK consecutive fp32 elements of a contiguous array, and their address."""
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [start]), ir.PointerType(_VECTOR))
    return builder.load(pointer, align=4), pointer


_VECTOR = ir.VectorType(ir.FloatType(), BLOCK)


@intrinsic
def _reached(typingctx, row, bias, start, bar):
    """Bit i: not (row[start + i] + bias[start + i] < bar), so that NaN counts; whole blocks only."""

    def generate(context, builder, signature, arguments):
        row, bias, start, bar = arguments
        x, _ = _load(context, builder, signature.args[0], row, start)
        b, _ = _load(context, builder, signature.args[1], bias, start)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), bar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        splat = builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)
        return builder.bitcast(builder.fcmp_unordered(">=", builder.fadd(x, b), splat), ir.IntType(BLOCK))

    return types.uint64(row, bias, types.intp, types.float32), generate


@intrinsic
def _raise_lanes(typingctx, row, bias, start, maxima, lane):
    """maxima[lane + i] = max(itself, row[start + i] + bias[start + i]), passing over NaN; whole blocks only."""

    def generate(context, builder, signature, arguments):
        row, bias, start, maxima, lane = arguments
        x, _ = _load(context, builder, signature.args[0], row, start)
        b, _ = _load(context, builder, signature.args[1], bias, start)
        old, pointer = _load(context, builder, signature.args[3], maxima, lane)
        new = builder.fadd(x, b)
        builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), pointer, align=4)

    return types.void(row, bias, types.intp, maxima, types.intp), generate


@intrinsic
def _lowest_bit(typingctx, mask):
    """Place of the lowest set bit of a mask that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), generate


@jit(fastmath=False)
def _pack(value, index):
    """One int64 that sorts ascending by value descending (NaN before +Inf, -0 equal to 0), then index ascending."""
    bits = np.float32(value + np.float32(0.0)).view(np.int32)
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    ordered = ordered if value == value else np.int32(0x7FFFFFFF)
    return (np.int64(~ordered) << 32) | index


@jit(fastmath=False)
def _unpack_value(packed):
    ordered = np.int32(~(packed >> 32))
    return np.int32(ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)


@jit(fastmath=False)
def _smallest_first(a, n, k):
    """Reorder a[:n] so that its k smallest stand in a[:k] (Hoare's selection, median of three)."""
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) >> 1
        if a[middle] < a[low]:
            a[middle], a[low] = a[low], a[middle]
        if a[high] < a[low]:
            a[high], a[low] = a[low], a[high]
        if a[high] < a[middle]:
            a[high], a[middle] = a[middle], a[high]
        pivot = a[middle]
        i, j = low, high
        while i <= j:
            while a[i] < pivot:
                i += 1
            while a[j] > pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@jit(fastmath=False)
def _cut(held, n, k, bar):
    """Keep the k best of held[:n]; the new bar: a later latent has to exceed the worst of them."""
    _smallest_first(held, n, k)
    worst = held[0]
    for i in range(1, k):
        worst = max(worst, held[i])
    value = _unpack_value(worst)
    if value != value:  # k NaNs: only another NaN passes this bar, and loses by its index
        return np.float32(np.inf)
    return max(bar, np.nextafter(value, np.float32(np.inf)))


@jit(fastmath=False)
def _raise_bar(row, bias, maxima, k, bar):
    """Take the row into the lanes' maxima; a bar that at least k of them, so at least k latents, reach.

    The k-th largest of the maxima is found by bisection, each step a few vector comparisons; wherever it stops, its
    lower end is reached by k lanes.
    """
    lanes = maxima.shape[0]
    lane = 0
    for start in range(0, row.shape[0] - BLOCK + 1, BLOCK):
        _raise_lanes(row, bias, start, maxima, lane)
        lane = lane + BLOCK if lane + BLOCK < lanes else 0
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for i in range(lanes):
        low = maxima[i] if maxima[i] < low else low
        high = maxima[i] if maxima[i] > high else high
    for _ in range(BISECTIONS):
        middle = np.float32(0.5) * (low + high)
        reached = 0
        for i in range(lanes):
            reached += maxima[i] >= middle
        if reached >= k:
            low = middle
        else:
            high = middle
    return max(bar, low)


@jit(fastmath=False)
def _append(held, count, value, index, k, bar):
    """Append a candidate, after cutting the list if it is full; the new count and bar."""
    if count == held.shape[0]:
        bar = _cut(held, count, k, bar)
        count = k
        if value < bar:
            return count, bar
    held[count] = _pack(value, index)
    return count + 1, bar


@jit(parallel=True, fastmath=False)
def _scan(product, bias, first, k, lists, counts, bars, lane_maxima):
    """Append to each row's list what of this tile may be among its k best."""
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, held, count, bar = product[i], lists[i], counts[i], bars[i]
        if lane_maxima.shape[1] > 0:
            bar = _raise_bar(row, bias, lane_maxima[i], k, bar)
        for start in range(0, whole, BLOCK):
            mask = _reached(row, bias, start, bar)
            while mask:
                j = start + _lowest_bit(mask)
                count, bar = _append(held, count, row[j] + bias[j], first + j, k, bar)
                mask &= mask - np.uint64(1)
        for j in range(whole, columns):
            value = row[j] + bias[j]
            if not (value < bar):
                count, bar = _append(held, count, value, first + j, k, bar)
        counts[i] = count
        bars[i] = bar


@jit(parallel=True, fastmath=False)
def _finish(lists, counts, bars, k, values, indices):
    """Sort the k best of every row and write them out, negative values as zero."""
    for i in prange(values.shape[0]):
        held = lists[i]
        # the bar has risen since most were listed; one step below it, since a cut asks later latents to exceed it
        limit = _pack(np.nextafter(bars[i], np.float32(-np.inf)), 0xFFFFFFFF)
        count = 0
        for j in range(counts[i]):
            candidate = held[j]
            held[count] = candidate
            count += candidate <= limit
        _smallest_first(held, count, k)
        best = held[:k]
        best.sort()
        for j in range(k):
            value = _unpack_value(best[j])
            values[i, j] = np.float32(0.0) if value < 0 else value
            indices[i, j] = best[j] & 0xFFFFFFFF
