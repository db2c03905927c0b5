"""Numba kernels of the top-k encode: the product with the selection behind it, panel of tokens by panel of tokens.

A panel is PANEL tokens side by side, one a vector lane; a candidate is one int64, `_pack(value, index)`. Ascending
candidates are descending values, and ascending indices among equal values; NaN comes before +Inf, as in torch.sort.
Jitted functions that call each other all stand in this module, because numba's cache requires it (see jit.py).
"""

# numba passes the first argument of an intrinsic, typingctx, itself
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from sae_kernels.jit import jit, prange

_FEATURES = config.CPU_FEATURES if config.CPU_FEATURES is not None else binding.get_host_cpu_features().flatten()
if "+avx512f" in _FEATURES.split(","):
    VECTOR, ROWS = 16, 14
else:
    VECTOR, ROWS = 8, 6
HAS_PRODUCT = not {"+avx512f", "+fma"}.isdisjoint(_FEATURES.split(","))
"""Whether `multiply_and_select` is as fast as torch's BLAS: on x86 with AVX2 or AVX-512. The tile of ROWS x PANEL sums
fills their vector registers."""
PANEL = 2 * VECTOR
UNROLL = 4
DEPTH = 1024
"""Dimensions that are summed before the next tile: that part of a panel stays in the L2 cache."""
BISECTIONS = 8

_INT, _BIG = ir.IntType(32), ir.IntType(64)


def _data(context, builder, kind, array, start):
    """The address of an element of a contiguous array."""
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, value=array).data, [start])


def _vector(builder, address, size, offset=0):
    return builder.bitcast(builder.gep(address, [_BIG(offset)]), ir.VectorType(ir.FloatType(), size).as_pointer())


def _splat(builder, value, size):
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), size), ir.Undefined)
    one = builder.insert_element(undefined, value, _INT(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT, size), [0] * size))


@intrinsic
def _multiply(typingctx, weights, start, panel, place, depth, tile, at):
    """tile[at:][r, i] += Σ_j weights[start:][j, r] panel[place:][j, i] for j < depth, r < ROWS, i < PANEL.

    `depth` is a positive multiple of UNROLL. The sums stand in registers and are taken in the order of j.
    """

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        weights, start, panel, place, depth, tile, at = arguments
        vector = ir.VectorType(ir.FloatType(), VECTOR)
        kind = ir.FunctionType(vector, [vector] * 3)
        add_product = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{VECTOR}f32")
        ends = (0, weights, start), (2, panel, place), (5, tile, at)
        rows, columns, out = (_data(context, builder, kinds[i], array, offset) for i, array, offset in ends)
        places = [(r, c, _vector(builder, out, VECTOR, r * PANEL + c * VECTOR)) for r in range(ROWS) for c in (0, 1)]
        before = [builder.load(address, align=4) for *_, address in places]
        entry, loop, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        j = builder.phi(_BIG)
        sums = [builder.phi(vector) for _ in places]
        new = list(sums)
        for step in range(UNROLL):
            column, row = (builder.gep(a, [builder.mul(j, _BIG(n))]) for a, n in ((columns, PANEL), (rows, ROWS)))
            halves = [
                builder.load(_vector(builder, column, VECTOR, step * PANEL + c * VECTOR), align=4) for c in (0, 1)
            ]
            for r in range(ROWS):
                weight = _splat(builder, builder.load(builder.gep(row, [_BIG(step * ROWS + r)]), align=4), VECTOR)
                for c in (0, 1):
                    new[2 * r + c] = builder.call(add_product, [weight, halves[c], new[2 * r + c]])
        following = builder.add(j, _BIG(UNROLL))
        for phi, value, old in zip([j, *sums], [following, *new], [_BIG(0), *before], strict=True):
            phi.add_incoming(old, entry)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
        builder.position_at_end(done)
        for (*_, address), value in zip(places, new, strict=True):
            builder.store(value, address, align=4)

    size, array = types.intp, types.float32[::1]
    return types.void(array, size, array, size, size, array, size), generate


@intrinsic
def _reached(typingctx, tile, at, bias, bars, place):
    """Mask whose bit i is not (tile[at + i] + bias < bars[place + i]) for i < PANEL, so that NaN counts."""

    def generate(context, builder, signature, arguments):
        tile, at, bias, bars, place = arguments
        x = builder.load(_vector(builder, _data(context, builder, signature.args[0], tile, at), PANEL), align=4)
        bar = builder.load(_vector(builder, _data(context, builder, signature.args[3], bars, place), PANEL), align=4)
        reached = builder.fcmp_unordered(">=", builder.fadd(x, _splat(builder, bias, PANEL)), bar)
        return builder.zext(builder.bitcast(reached, ir.IntType(PANEL)), _BIG)

    array = types.float32[::1]
    return types.uint64(array, types.intp, types.float32, array, types.intp), generate


@intrinsic
def _raise_lane(typingctx, tile, at, bias, maxima, place):
    """maxima[place + i] = max(maxima[place + i], tile[at + i] + bias) for i < PANEL, ignoring NaN."""

    def generate(context, builder, signature, arguments):
        tile, at, bias, maxima, place = arguments
        x = builder.load(_vector(builder, _data(context, builder, signature.args[0], tile, at), PANEL), align=4)
        address = _vector(builder, _data(context, builder, signature.args[3], maxima, place), PANEL)
        old, new = builder.load(address, align=4), builder.fadd(x, _splat(builder, bias, PANEL))
        builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), address, align=4)

    array = types.float32[::1]
    return types.void(array, types.intp, types.float32, array, types.intp), generate


@intrinsic
def _lowest_bit(typingctx, mask):
    """Index of the lowest set bit of a mask that is not zero."""

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
def _drop_below(candidates, count, bar):
    """Keep, in order, what may be among the k largest: a cut sets the bar one step above a value that stays."""
    limit = _pack(np.nextafter(bar, np.float32(-np.inf)), 0xFFFFFFFF)
    kept = 0
    for j in range(count):
        candidate = candidates[j]
        candidates[kept] = candidate
        kept += candidate <= limit
    return kept


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
def _make_room(lists, token, count, k, bar):
    """Drop from a full list what cannot be among the k largest; returns the new count and bar."""
    candidates = lists[token]
    count = _drop_below(candidates, count, bar)
    if count > candidates.shape[0] - candidates.shape[0] // 4:
        return k, _cut(candidates, count, k, bar)
    return count, bar


@jit(fastmath=False)
def _raise_bars(maxima, place, lanes, k, bars, first):
    """Raise the bars of a panel to ones that at least k lanes, so at least k latents, reach.

    The bar is the k-th largest of the maxima, approximated from below by bisection, a few vector comparisons a step: at
    least k lanes reach the lower end of the interval at every step.
    """
    low, high = np.full(PANEL, np.inf, np.float32), np.full(PANEL, -np.inf, np.float32)
    middle, reached = np.empty(PANEL, np.float32), np.empty(PANEL, np.int32)
    for lane in range(lanes):
        row = maxima[place + lane * PANEL : place + (lane + 1) * PANEL]
        for i in range(PANEL):
            low[i] = row[i] if row[i] < low[i] else low[i]
            high[i] = row[i] if row[i] > high[i] else high[i]
    for _ in range(BISECTIONS):
        for i in range(PANEL):
            middle[i] = np.float32(0.5) * (low[i] + high[i])
            reached[i] = 0
        for lane in range(lanes):
            row = maxima[place + lane * PANEL : place + (lane + 1) * PANEL]
            for i in range(PANEL):
                reached[i] += np.int32(1) if row[i] >= middle[i] else np.int32(0)
        for i in range(PANEL):
            low[i] = middle[i] if reached[i] >= k else low[i]
            high[i] = high[i] if reached[i] >= k else middle[i]
    for i in range(PANEL):
        bars[first + i] = max(bars[first + i], low[i])


@jit(fastmath=False)
def _select(tile, start, stride, latents, bias, first, raises, panel, k, lists, counts, bars, maxima, lanes):
    """Append to the lists of a panel's tokens what may be among their k largest.

    Latent first + f of the panel stands at tile[start + f stride:]; `raises` says whether to raise the bars first.
    """
    token = panel * PANEL
    if lanes > 0:
        lane = first % lanes
        for f in range(latents):
            _raise_lane(tile, start + f * stride, bias[first + f], maxima, (panel * lanes + lane) * PANEL)
            lane = lane + 1 if lane + 1 < lanes else 0
        if raises:
            _raise_bars(maxima, token * lanes, lanes, k, bars, token)
    room = lists.shape[1]
    for f in range(latents):
        mask = _reached(tile, start + f * stride, bias[first + f], bars, token)
        while mask:
            bit = _lowest_bit(mask)
            mask &= mask - np.uint64(1)
            # no view of a list here: its reference count, which threads share, would cost more than all the rest
            i = token + bit
            value = tile[start + f * stride + bit] + bias[first + f]
            if counts[i] == room:
                counts[i], bars[i] = _make_room(lists, i, counts[i], k, bars[i])
                if value < bars[i]:
                    continue
            lists[i, counts[i]] = _pack(value, first + f)
            counts[i] += 1


@jit(parallel=True, fastmath=False)
def pack_panels(x, panels, depth):
    """panels[p, j, i] = x[p PANEL + i, j]: tokens [n, d] side by side, and zeros up to `depth` and to whole panels."""
    tokens, width = x.shape
    for p in prange(panels.shape[0] // (depth * PANEL)):
        panel = panels[p * depth * PANEL : (p + 1) * depth * PANEL].reshape(depth, PANEL)
        rest = min(PANEL, tokens - p * PANEL)
        if rest < PANEL or depth > width:
            panel[:] = 0
        for i in range(rest):
            row = x[p * PANEL + i]
            for j in range(width):
                panel[j, i] = row[j]


@jit(fastmath=False)
def _pack_rows(W, first, buffer, place, depth):
    """buffer[place:][j, r] = W[first + r, j] for r < ROWS, j < depth, and zeros beyond W."""
    rows = min(ROWS, W.shape[0] - first)
    if rows < ROWS or W.shape[1] < depth:
        buffer[place : place + depth * ROWS] = 0
    if rows == ROWS:  # a constant, so that the loop is unrolled
        for j in range(W.shape[1]):
            for r in range(ROWS):
                buffer[place + j * ROWS + r] = W[first + r, j]
    else:
        for j in range(W.shape[1]):
            for r in range(rows):
                buffer[place + j * ROWS + r] = W[first + r, j]


@jit(parallel=True, fastmath=False)
def multiply_and_select(panels, depth, W, bias, first, buffers, block, tiles, k, lists, counts, bars, maxima, lanes):
    """Multiply the panels with the rows of W, which are latents from `first` on, and list the candidates.

    A thread takes its share of the panels. It copies `block` rows of W to its own buffer and multiplies all its panels
    with them. What a token's list becomes does not depend on the number of threads.
    """
    threads = buffers.shape[0]
    panel_count = panels.shape[0] // (depth * PANEL)
    for t in prange(threads):
        buffer, tile = buffers[t], tiles[t]
        last = 0
        for start in range(0, W.shape[0], block):
            latents = min(block, W.shape[0] - start)
            rows = (latents + ROWS - 1) // ROWS * ROWS
            for f in range(0, rows, ROWS):
                _pack_rows(W, start + f, buffer, f * depth, depth)
            # the bar rises with the logarithm of the latents seen
            raises = 2 * (start + latents) >= 3 * last
            last = start + latents if raises else last
            for p in range(panel_count * t // threads, panel_count * (t + 1) // threads):
                tile[: rows * PANEL] = 0
                for j in range(0, depth, DEPTH):
                    size = min(DEPTH, depth - j)
                    for f in range(0, rows, ROWS):
                        place = (p * depth + j) * PANEL
                        _multiply(buffer, f * depth + j * ROWS, panels, place, size, tile, f * PANEL)
                _select(tile, 0, PANEL, latents, bias, first + start, raises, p, k, lists, counts, bars, maxima, lanes)


@jit(parallel=True, fastmath=False)
def select_columns(product, tokens, latents, bias, first, k, lists, counts, bars, maxima, lanes):
    """List the candidates of a product [latents, tokens], flat, made by torch; `tokens` are whole panels."""
    for p in prange(tokens // PANEL):
        _select(
            product, p * PANEL, tokens, latents, bias, first, True, p, k, lists, counts, bars, maxima, lanes
        )  # fmt: skip


@jit(parallel=True, fastmath=False)
def finish_topk(lists, counts, bars, k, values, indices):
    """values, indices [n, k] = relu of the k best candidates of every token, sorted."""
    for i in prange(values.shape[0]):
        candidates = lists[i]
        count = _drop_below(candidates, counts[i], bars[i])
        _smallest_first(candidates, count, k)
        best = candidates[:k]
        best.sort()
        for j in range(k):
            value = _unpack_value(best[j])
            values[i, j] = np.float32(0.0) if value < 0 else value
            indices[i, j] = best[j] & 0xFFFFFFFF
