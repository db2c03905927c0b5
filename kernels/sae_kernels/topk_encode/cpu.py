"""Top-k encode on the CPU: the product in tiles of registers, and behind it a scan for candidates of the k largest.

A block of latents is multiplied with a panel of tokens into a tile that stays in the L2 cache. Of every token the
maxima of at least 64 interleaved lanes of latents are kept. The k-th largest of these maxima is a bar that at least k
latents reach, so nothing below it can be among the k largest. One vector comparison of a latent's row of the tile with
the bars of its tokens finds the few entries that reach them, which are appended to their tokens' lists of candidates.
A full list is cut to its k best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.buffers import scratch
from sae_kernels.jit import sync_threads
from sae_kernels.tiles import TILE_BYTES, centre
from sae_kernels.topk_encode.cpu_select import (
    HAS_PRODUCT,
    PANEL,
    ROWS,
    UNROLL,
    finish_topk,
    multiply_and_select,
    pack_panels,
    select_columns,
)

# size of the candidate lists; a large k means fewer tokens at a time
LIST_BYTES = 16 << 20
# size of a thread's block of weights, and its number of latents: a thread multiplies all its tokens with a block
BLOCK_BYTES = 1 << 20
BLOCK_LATENTS = 512
MAX_LANES = 1024


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] = relu of the k largest of W_enc (x - b_pre) + b_enc, ties to the lowest index."""
    threads = sync_threads(x.shape[0] * W_enc.shape[0])
    tokens, width = x.shape[0], W_enc.shape[0]
    values, indices = torch.empty(tokens, k), torch.empty(tokens, k, dtype=torch.int64)
    bias = b_enc.detach().float().contiguous().numpy()
    # a multiple of 64, and at least 4/3 k, since fewer lanes give too low a bar; 0 to do without lanes
    lanes = -(-4 * k // (3 * 64)) * 64
    lanes = lanes if lanes <= min(MAX_LANES, width // 2) else 0
    room = min(width, max(8 * k, k + 96))
    rows = max(1, min(-(-tokens // PANEL), LIST_BYTES // (8 * room * PANEL))) * PANEL
    memory = scratch()
    lists = memory.get("encode.lists", (rows, room), torch.int64).numpy()
    counts = memory.get("encode.counts", (rows,), torch.int64)
    bars = memory.get("encode.bars", (rows,))
    maxima = memory.get("encode.maxima", (rows * lanes,))
    state = lists, counts.numpy(), bars.numpy(), maxima.numpy(), lanes
    centred = centre(x, b_pre)
    fused = is_fused(tokens, threads)
    for start in range(0, tokens, rows):
        block = centred[start : start + rows]
        counts.zero_()
        bars.fill_(-math.inf)
        maxima.fill_(-math.inf)
        if fused:
            _multiply_and_select(block, W_enc, bias, k, state, threads)
        else:
            _select_columns(block, W_enc, bias, k, state)
        done = slice(start, start + rows)
        finish_topk(lists, state[1], state[2], k, values[done].numpy(), indices[done].numpy())
    return values.to(torch.promote_types(x.dtype, W_enc.dtype)), indices


def is_fused(tokens: int, threads: int) -> bool:
    """Whether the product is made here and not by torch: a thread takes whole panels of tokens, so few would not do."""
    return HAS_PRODUCT and 2 * tokens >= threads * PANEL


def _multiply_and_select(block: Tensor, W_enc: Tensor, bias, k: int, state: tuple, threads: int) -> None:
    """List the candidates of a block of tokens [n, d] by a product of our own."""
    d = block.shape[1]
    depth = max(1, -(-d // UNROLL)) * UNROLL
    panels = scratch().get("encode.panels", (-(-block.shape[0] // PANEL) * PANEL * depth,)).numpy()
    pack_panels(block.numpy(), panels, depth)
    latents = max(1, min(BLOCK_LATENTS, BLOCK_BYTES // (4 * depth)) // ROWS) * ROWS
    buffers = scratch().get("encode.weights", (threads, latents * depth)).numpy()
    tiles = scratch().get("encode.tiles", (threads, latents * PANEL)).numpy()
    for first, part in _parts(W_enc, max(ROWS, TILE_BYTES // (4 * depth))):
        multiply_and_select(panels, depth, part.numpy(), bias, first, buffers, latents, tiles, k, *state)


def _select_columns(block: Tensor, W_enc: Tensor, bias, k: int, state: tuple) -> None:
    """The same by a product of torch, in tiles that stay in the L3 cache."""
    tokens = -(-block.shape[0] // PANEL) * PANEL
    padded = torch.nn.functional.pad(block, (0, 0, 0, tokens - block.shape[0]))
    columns = max(256, TILE_BYTES // (4 * tokens))
    buffer = scratch().get("encode.tile", (columns * tokens,))
    for first, part in _parts(W_enc, columns, always=True):
        product = buffer[: part.shape[0] * tokens]
        # out= also keeps autocast from changing the dtype
        torch.mm(part, padded.t(), out=product.view(part.shape[0], tokens))
        select_columns(product.numpy(), tokens, part.shape[0], bias, first, k, *state)


def _parts(W_enc: Tensor, latents: int, always: bool = False) -> Iterator[tuple[int, Tensor]]:
    """(first latent, rows) of W_enc in fp32, contiguous: all at once if that needs no copy and not `always`."""
    weights = W_enc.detach()
    ready = weights.dtype == torch.float32 and weights.is_contiguous()
    if ready and not always:
        yield 0, weights
        return
    copy = None if ready else scratch().get("encode.cast", (min(latents, weights.shape[0]), weights.shape[1]))
    for first in range(0, weights.shape[0], latents):
        part = weights[first : first + latents]
        yield first, part if copy is None else copy[: part.shape[0]].copy_(part)
