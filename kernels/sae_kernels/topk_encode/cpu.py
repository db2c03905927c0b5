"""Top-k encode on the CPU: the product in tiles that stay in cache, and a scan that skips what cannot win.

The product of a tile of tokens and a tile of latents goes into one reused buffer (4 MB, so it stays in the L3 cache);
a numba loop then compares it, 32 latents at a time, with the row's current k-th value and looks closer only where
something exceeds it. What does is appended to a short list a row; a full list is cut back to its k best, which raises
the row's bar. After the bar has risen a few times, nearly every block is passed over with one vector comparison.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_kernels.buffers import scratch
from sae_kernels.jit import jit, prange, sync_threads

TILE_TOKENS = 2048
TILE_LATENTS = 512
BLOCK = 32
# candidate lists of one token tile may take this much (bytes); large k means fewer tokens a tile
LIST_BYTES = 32 << 20


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
    room = min(width, max(4 * k, k + 96))
    rows = max(1, min(TILE_TOKENS, tokens, LIST_BYTES // (8 * room)))
    # a row must stay small enough for the tile to stay in cache, yet a short batch may use wider tiles
    columns = min(width, TILE_LATENTS * max(1, TILE_TOKENS // (4 * rows)))
    weights, bias = W_enc.detach(), b_enc.detach().float().contiguous().numpy()
    memory = scratch()
    tile = memory.get("encode.tile", (rows * columns,))
    cast = None if weights.dtype == torch.float32 else memory.get("encode.cast", (columns, weights.shape[1]))
    lists = memory.get("encode.lists", (rows, room), torch.int64).numpy()
    counts = memory.get("encode.counts", (rows,), torch.int64).numpy()
    bars = memory.get("encode.bars", (rows,)).numpy()
    out_values, out_indices = values.numpy(), indices.numpy()
    for start in range(0, tokens, rows):
        block = centred[start : start + rows]
        n = block.shape[0]
        counts[:n] = 0
        for first in range(0, width, columns):
            part = weights[first : first + columns]
            if cast is not None:
                part = cast[: part.shape[0]].copy_(part)
            product = tile[: n * part.shape[0]].view(n, part.shape[0])
            torch.mm(block, part.t(), out=product)
            _scan(product.numpy(), bias, first, k, lists, counts, bars)
        _finish(lists, counts, k, out_values[start : start + n], out_indices[start : start + n])


@jit(fastmath=False)
def _pack(value, index):
    """One int64 that sorts ascending by value descending (NaN before +Inf, -0 equal to 0), then index ascending."""
    bits = np.int64(np.float32(value + np.float32(0.0)).view(np.int32))
    if value != value:
        bits = np.int64(0x7FFFFFFF)
    elif bits < 0:
        bits ^= 0x7FFFFFFF
    return (~bits << 32) | index


@jit(fastmath=False)
def _unpack_value(packed):
    bits = ~(packed >> 32)
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return np.int32(bits).view(np.float32)


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
def _cut(row, n, k):
    """Keep the k best of row[:n]; the value that a later latent has to exceed."""
    _smallest_first(row, n, k)
    worst = row[0]
    for i in range(1, k):
        worst = max(worst, row[i])
    bar = _unpack_value(worst)
    # k NaNs: nothing but another NaN, which loses by its index, can pass this bar
    return bar if bar == bar else np.float32(np.inf)


@jit(parallel=True, fastmath=False)
def _scan(product, bias, first, k, lists, counts, bars):
    """Append to each row's list what of this tile may be among its k best; cut a list that is full."""
    room = lists.shape[1]
    columns = product.shape[1]
    for i in prange(product.shape[0]):
        row, held, count, bar = product[i], lists[i], counts[i], bars[i]
        # the first `room` latents all go in, so that the bar exists before anything is passed over
        start = min(max(room - first, 0), columns)
        for j in range(start):
            held[count] = _pack(row[j] + bias[first + j], first + j)
            count += 1
        if count == room and start > 0:
            bar = _cut(held, count, k)
            count = k
        for block in range(start, columns, BLOCK):
            stop = min(block + BLOCK, columns)
            above = 0
            if stop - block == BLOCK:
                for j in range(block, block + BLOCK):
                    above |= not (row[j] + bias[first + j] <= bar)
            else:
                above = 1
            if above:
                for j in range(block, stop):
                    value = row[j] + bias[first + j]
                    if not (value <= bar):
                        if count == room:
                            bar = _cut(held, count, k)
                            count = k
                            if value <= bar:
                                continue
                        held[count] = _pack(value, first + j)
                        count += 1
        counts[i] = count
        bars[i] = bar


@jit(parallel=True, fastmath=False)
def _finish(lists, counts, k, values, indices):
    """Sort the k best of every row and write them out, negative values as zero."""
    for i in prange(values.shape[0]):
        held = lists[i]
        _smallest_first(held, counts[i], k)
        best = held[:k]
        best.sort()
        for j in range(k):
            value = _unpack_value(best[j])
            values[i, j] = np.float32(0.0) if value < 0 else value
            indices[i, j] = best[j] & 0xFFFFFFFF
