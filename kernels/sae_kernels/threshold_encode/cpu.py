"""Threshold encode on the CPU: entries are counted in a tile of the product, then copied while it is in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.jit import sync_threads
from sae_kernels.scan import count_above, merge_rows, take_above
from sae_kernels.tiles import TILE_TOKENS, centre, product_tiles


def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, margin: float, b_pre: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets of every entry of W_enc (x - b_pre) + b_enc that is not <= theta - margin."""
    sync_threads(x.shape[0] * W_enc.shape[0])
    bias = b_enc.detach().float().contiguous()
    bars = (theta.detach().float() - margin).contiguous()
    parts = [
        (start, *above(product, bias, bars, first))
        for start, first, product in product_tiles(centre(x, b_pre), W_enc, TILE_TOKENS)
    ]
    values, indices, offsets = assemble(parts, x.shape[0])
    return values.to(torch.promote_types(x.dtype, W_enc.dtype)), indices, offsets


def above(product: Tensor, bias: Tensor, bars: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts a row [n], values and indices of the tile's entries that are not <= their bars; bias and bars are [F]."""
    n, columns = product.shape
    latents = slice(first, first + columns)
    counts = torch.empty(n, dtype=torch.int64)
    count_above(product.numpy(), bias[latents].numpy(), bars[latents].numpy(), counts.numpy())
    places = counts.cumsum(0)
    kept = int(places[-1]) if n else 0
    values, indices = torch.empty(kept), torch.empty(kept, dtype=torch.int64)
    take_above(
        product.numpy(), bias[latents].numpy(), bars[latents].numpy(), first,
        (places - counts).numpy(), values.numpy(), indices.numpy(),
    )  # fmt: skip
    return counts, values, indices


def assemble(parts: list[tuple[int, Tensor, Tensor, Tensor]], tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """CSR codes from parts (first token, counts, values, indices); those of one token come in the order of latents."""
    totals = torch.zeros(tokens, dtype=torch.int64)
    for start, counts, _, _ in parts:
        totals[start : start + counts.shape[0]] += counts
    offsets = torch.nn.functional.pad(totals.cumsum(0), (1, 0))
    values = torch.empty(int(offsets[-1]))
    indices = torch.empty(values.shape[0], dtype=torch.int64)
    filled = torch.zeros_like(totals)
    for start, counts, part_values, part_indices in parts:
        rows = slice(start, start + counts.shape[0])
        merge_rows(
            (counts.cumsum(0) - counts).numpy(), counts.numpy(), part_values.numpy(), part_indices.numpy(),
            offsets[rows].numpy(), filled[rows].numpy(), values.numpy(), indices.numpy(),
        )  # fmt: skip
    return values, indices, offsets
