"""Numba loops that scan tiles of pre-activations for the entries that the sparse encodes keep.

A tile is the product x W^T of some tokens and some latents [n, columns], fp32, still in the cache; the loops add the
bias. Jitted functions that call each other all stand in this module, because numba's cache requires it (see jit.py).

A candidate is one int64, `_pack(value, index)`. Ascending candidates are descending values, and ascending indices among
equal values; NaN comes before +Inf, as in torch.sort.
"""

# numba passes the first argument of an intrinsic, typingctx, itself
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae_kernels.jit import jit, prange

# latents compared at once; their results are the bits of one 64-bit mask
BLOCK = 64
BISECTIONS = 8
_VECTOR = ir.VectorType(ir.FloatType(), BLOCK)


def _load(context, builder, kind, array, start):
    """BLOCK consecutive fp32 elements of a contiguous array, and their pointer."""
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [start]), ir.PointerType(_VECTOR))
    return builder.load(pointer, align=4), pointer


@intrinsic
def _reached(typingctx, row, bias, start, bar):
    """Mask whose bit i is not (row[start + i] + bias[start + i] < bar), so that NaN counts; whole blocks only."""

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
    """Mask whose bit i is not (row[start + i] + bias[start + i] <= bars[start + i]), so that NaN counts."""

    def generate(context, builder, signature, arguments):
        row, bias, bars, start = arguments
        x, _ = _load(context, builder, signature.args[0], row, start)
        b, _ = _load(context, builder, signature.args[1], bias, start)
        bar, _ = _load(context, builder, signature.args[2], bars, start)
        return builder.bitcast(builder.fcmp_unordered(">", builder.fadd(x, b), bar), ir.IntType(BLOCK))

    return types.uint64(row, bias, bars, types.intp), generate


@intrinsic
def _raise_lanes(typingctx, row, bias, start, maxima, lane):
    """maxima[lane + i] = max(maxima[lane + i], row[start + i] + bias[start + i]), ignoring NaN; whole blocks only."""

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
    """Index of the lowest set bit of a mask that is not zero."""

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
    """Reorder a[:n] so that a[:k] are its k smallest (Hoare's selection, median of three)."""
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
def _cut(candidates, n, k, bar):
    """Move the k best of candidates[:n] to its front; returns the new bar, just above the worst of these k."""
    _smallest_first(candidates, n, k)
    worst = candidates[0]
    for i in range(1, k):
        worst = max(worst, candidates[i])
    value = _unpack_value(worst)
    if value != value:  # k NaNs: only another NaN can reach this bar, and its index is higher
        return np.float32(np.inf)
    return max(bar, np.nextafter(value, np.float32(np.inf)))


@jit(fastmath=False)
def _raise_bar(row, bias, maxima, k, bar):
    """Update the lanes' maxima with the row; returns a bar that at least k lanes, so at least k latents, reach.

    The bar is the k-th largest of the maxima, approximated from below by bisection, a few vector comparisons a step: at
    least k lanes reach the lower end of the interval at every step.
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
def _append(candidates, count, value, index, k, bar):
    """Append a candidate, cutting a full list to its k best first; returns the new count and bar."""
    if count == candidates.shape[0]:
        bar = _cut(candidates, count, k, bar)
        count = k
        if value < bar:
            return count, bar
    candidates[count] = _pack(value, index)
    return count + 1, bar


@jit(parallel=True, fastmath=False)
def scan_topk(product, bias, first, k, lists, counts, bars, lane_maxima):
    """Append to each token's list the entries of this tile that may be among its k largest.

    `counts` are the lengths of the lists, `bars` the values below which nothing can be among the k largest, and
    `lane_maxima` [n, lanes] the maxima so far of the interleaved lanes of latents; all are updated.
    """
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, candidates, count, bar = product[i], lists[i], counts[i], bars[i]
        if lane_maxima.shape[1] > 0:
            bar = _raise_bar(row, bias, lane_maxima[i], k, bar)
        for start in range(0, whole, BLOCK):
            mask = _reached(row, bias, start, bar)
            while mask:
                j = start + _lowest_bit(mask)
                count, bar = _append(candidates, count, row[j] + bias[j], first + j, k, bar)
                mask &= mask - np.uint64(1)
        for j in range(whole, columns):
            value = row[j] + bias[j]
            if not (value < bar):
                count, bar = _append(candidates, count, value, first + j, k, bar)
        counts[i] = count
        bars[i] = bar


@jit(parallel=True, fastmath=False)
def finish_topk(lists, counts, bars, k, values, indices):
    """values, indices [n, k] = relu of the k best candidates of every token, sorted."""
    for i in prange(values.shape[0]):
        candidates = lists[i]
        # drop what was listed under a lower bar; a cut sets the bar one step above a value that stays, hence nextafter
        limit = _pack(np.nextafter(bars[i], np.float32(-np.inf)), 0xFFFFFFFF)
        count = 0
        for j in range(counts[i]):
            candidate = candidates[j]
            candidates[count] = candidate
            count += candidate <= limit
        _smallest_first(candidates, count, k)
        best = candidates[:k]
        best.sort()
        for j in range(k):
            value = _unpack_value(best[j])
            values[i, j] = np.float32(0.0) if value < 0 else value
            indices[i, j] = best[j] & 0xFFFFFFFF


@jit(parallel=True, fastmath=False)
def count_above(product, bias, bars, counts):
    """counts[i] = the number of entries of row i of product + bias that exceed their latent's bar or are NaN."""
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
    """Write the entries that `count_above` counts, those of row i from places[i] on; column j is latent first + j."""
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
    """Append one part to CSR codes: counts[i] entries from starts[i] on, after the filled[i] that row i already has."""
    for i in prange(counts.shape[0]):
        source, target = starts[i], offsets[i] + filled[i]
        for j in range(counts[i]):
            out_values[target + j] = values[source + j]
            out_indices[target + j] = indices[source + j]
        filled[i] += counts[i]
