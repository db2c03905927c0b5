"""Top-k encode on the CPU: the product in tiles that stay in cache, and a scan for the candidates of the k largest.

The product of a tile of tokens and a tile of latents goes into one reused buffer that stays in the L3 cache. A first
pass over a token's row takes the maximum of each of at least 64 interleaved lanes of latents. The k-th largest of these
maxima is a bar that at least k latents reach, so nothing below it can be among the k largest. A second pass compares
the row with the bar, 64 latents at a time, and appends those that reach it to a list of candidates, about 3 k in the
end. A full list is cut to its k best. Both passes take one vector instruction for every eight latents (AVX2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_kernels.buffers import scratch
from sae_kernels.jit import sync_threads
from sae_kernels.scan import BLOCK, finish_topk, scan_topk
from sae_kernels.tiles import TILE_TOKENS, centre, product_tiles

# size of the candidate lists of one token tile; a large k means fewer tokens a tile
LIST_BYTES = 16 << 20
MAX_LANES = 1024


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] = relu of the k largest of W_enc (x - b_pre) + b_enc, ties to the lowest index."""
    sync_threads(x.shape[0] * W_enc.shape[0])
    tokens, width = x.shape[0], W_enc.shape[0]
    values, indices = torch.empty(tokens, k), torch.empty(tokens, k, dtype=torch.int64)
    bias = b_enc.detach().float().contiguous().numpy()
    # a multiple of BLOCK, and at least 4/3 k, since fewer lanes give too low a bar; 0 to do without lanes
    lanes = -(-4 * k // (3 * BLOCK)) * BLOCK
    lanes = lanes if lanes <= min(MAX_LANES, width // 2) else 0
    room = min(width, max(4 * k, k + 96))
    rows = max(1, min(TILE_TOKENS, tokens, LIST_BYTES // (8 * room)))
    memory = scratch()
    lists = memory.get("encode.lists", (rows, room), torch.int64).numpy()
    counts = memory.get("encode.counts", (rows,), torch.int64)
    bars = memory.get("encode.bars", (rows,))
    maxima = memory.get("encode.maxima", (rows, lanes))
    for start, first, product in product_tiles(centre(x, b_pre), W_enc, rows):
        if first == 0:
            counts.zero_()
            bars.fill_(-math.inf)
            maxima.fill_(-math.inf)
        n, columns = product.shape
        part = bias[first : first + columns]
        scan_topk(product.numpy(), part, first, k, lists, counts.numpy(), bars.numpy(), maxima.numpy())
        if first + columns == width:
            rows_done = slice(start, start + n)
            finish_topk(lists, counts.numpy(), bars.numpy(), k, values[rows_done].numpy(), indices[rows_done].numpy())
    return values.to(torch.promote_types(x.dtype, W_enc.dtype)), indices
