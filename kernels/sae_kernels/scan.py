"""Numba loops that look through tiles of pre-activations for what the sparse encodes keep.

A tile is the product x W^T of some tokens and some latents [n, columns], fp32, still in the cache; the bias is added
on the way. Everything jitted that calls another lies in this one module (see jit.py on the cache).

A candidate is one int64, `_pack(value, index)`, that sorts ascending by value descending, then index ascending; NaN
comes before +Inf, as in torch.sort.
"""

# an intrinsic is defined with a typing context that its callers do not pass
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae_kernels.jit import jit, prange

# latents compared at once; a mask of the outcomes fills one 64-bit integer
BLOCK = 64
BISECTIONS = 8
_VECTOR = ir.VectorType(ir.FloatType(), BLOCK)


def _load(context, builder, kind, array, start):
    """BLOCK consecutive fp32 elements of a contiguous array, and their address."""
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [start]), ir.PointerType(_VECTOR))
    return builder.load(pointer, align=4), pointer


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
def _exceeded(typingctx, row, bias, bars, start):
    """Bit i: not (row[start + i] + bias[start + i] <= bars[start + i]), so that NaN counts; whole blocks only."""

    def generate(context, builder, signature, arguments):
        row, bias, bars, start = arguments
        x, _ = _load(context, builder, signature.args[0], row, start)
        b, _ = _load(context, builder, signature.args[1], bias, start)
        bar, _ = _load(context, builder, signature.args[2], bars, start)
        return builder.bitcast(builder.fcmp_unordered(">", builder.fadd(x, b), bar), ir.IntType(BLOCK))

    return types.uint64(row, bias, bars, types.intp), generate


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


@intrinsic
def _ones(typingctx, mask):
    """Number of set bits."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

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
def scan_topk(product, bias, first, k, lists, counts, bars, lane_maxima):
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
def finish_topk(lists, counts, bars, k, values, indices):
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


@jit(parallel=True, fastmath=False)
def count_above(product, bias, bars, counts):
    """counts[i] = how many entries of row i exceed their latent's bar, NaN among them."""
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, count = product[i], 0
        for start in range(0, whole, BLOCK):
            count += _ones(_exceeded(row, bias, bars, start))
        for j in range(whole, columns):
            count += not (row[j] + bias[j] <= bars[j])
        counts[i] = count


@jit(parallel=True, fastmath=False)
def take_above(product, bias, bars, first, places, values, indices):
    """Write the entries that `count_above` counted, row i from places[i] on; indices count from `first`."""
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, place = product[i], places[i]
        for start in range(0, whole, BLOCK):
            mask = _exceeded(row, bias, bars, start)
            while mask:
                j = start + _lowest_bit(mask)
                values[place] = row[j] + bias[j]
                indices[place] = first + j
                place += 1
                mask &= mask - np.uint64(1)
        for j in range(whole, columns):
            value = row[j] + bias[j]
            if not (value <= bars[j]):
                values[place] = value
                indices[place] = first + j
                place += 1


@jit(parallel=True)
def merge_rows(starts, counts, values, indices, offsets, filled, out_values, out_indices):
    """Copy the rows of one part, row i of counts[i] entries from starts[i] on, behind what out already has of it."""
    for i in prange(counts.shape[0]):
        source, target = starts[i], offsets[i] + filled[i]
        for j in range(counts[i]):
            out_values[target + j] = values[source + j]
            out_indices[target + j] = indices[source + j]
        filled[i] += counts[i]
