"""The encode product x W_enc^T on the CPU, in tiles through one reused buffer: the N x F values are never stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.buffers import scratch

# the more tokens in a tile, the fewer passes over the weights
TILE_TOKENS = 2048
# size of the buffer: small enough for the L3 cache, large enough for the product to run at full speed
TILE_BYTES = 8 << 20


def centre(x: Tensor, b_pre: Tensor | None) -> Tensor:
    """x - b_pre in fp32, contiguous: x itself if nothing has to be done, else in scratch memory."""
    if b_pre is None and x.dtype == torch.float32 and x.is_contiguous():
        return x.detach()
    out = scratch().get("encode.centred", tuple(x.shape))
    if b_pre is None:
        return out.copy_(x.detach())
    if x.dtype == b_pre.dtype == torch.float32:
        return torch.sub(x.detach(), b_pre.detach(), out=out)
    return out.copy_(x.detach()).sub_(b_pre.detach())


def product_tiles(centred: Tensor, W_enc: Tensor, rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first token, first latent, tile [n, columns] of centred W_enc^T), token tile by token tile.

    centred is fp32 [N, d]; W_enc [F, d] may have any floating dtype and is multiplied in fp32. Every tile overwrites
    the one before.
    """
    tokens, (width, d) = centred.shape[0], W_enc.shape
    weights = W_enc.detach()
    rows = max(1, min(rows, TILE_TOKENS, tokens))
    columns = min(width, max(TILE_BYTES // (4 * rows) // 64 * 64, 256))
    buffer = scratch().get("encode.tile", (rows * columns,))
    cast = None if weights.dtype == torch.float32 else scratch().get("encode.cast", (columns, d))
    for start in range(0, tokens, rows):
        block = centred[start : start + rows]
        for first in range(0, width, columns):
            part = weights[first : first + columns]
            if cast is not None:
                part = cast[: part.shape[0]].copy_(part)
            product = buffer[: block.shape[0] * part.shape[0]].view(block.shape[0], part.shape[0])
            # out= also keeps autocast from changing the dtype
            yield start, first, torch.mm(block, part.t(), out=product)
