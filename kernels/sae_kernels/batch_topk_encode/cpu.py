"""Batch top-k encode on the CPU: collects every entry above a guessed bar, and selects the N k largest of these.

The guess is the caller's or comes from a sample of tokens. It is lowered a little, so that one product is usually
enough. If too many entries reach the bar, it is raised during the product to the N k-th largest entry so far. If too
few do, the product is repeated with the bar of the sample, and if that fails too, without a bar.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_kernels.batch_topk_encode import naive
from sae_kernels.dispatch import note
from sae_kernels.jit import sync_threads
from sae_kernels.threshold_encode.cpu import above, assemble
from sae_kernels.tiles import TILE_TOKENS, centre, product_tiles

SAMPLE_TOKENS = 64
# the bar is raised when this many times N k entries have been collected
CROWDED = 4

Part = tuple[int, Tensor, Tensor, Tensor]


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None, guess: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets = relu of the N k largest entries of W_enc (x - b_pre) + b_enc, as CSR codes."""
    sync_threads(x.shape[0] * W_enc.shape[0])
    centred = centre(x, b_pre)
    bias = b_enc.detach().float().contiguous()
    wanted = x.shape[0] * k
    bars = [None, -math.inf] if guess is None else [guess - 0.1 * abs(guess), None, -math.inf]
    for bar in bars:
        bar = _sampled_bar(centred, W_enc, bias, k) if bar is None else bar
        values, indices, offsets = assemble(_collect(centred, W_enc, bias, bar, wanted), x.shape[0])
        if values.shape[0] >= wanted:
            values, indices, offsets = _largest(values, indices, offsets, wanted)
            values = torch.where(values < 0, 0.0, values)
            return values.to(torch.promote_types(x.dtype, W_enc.dtype)), indices, offsets
    # some of the N k largest are -inf, which exceeds no bar
    note("batch_topk_encode", "naive")
    return naive.batch_topk_encode(x, W_enc, b_enc, k, b_pre, guess)


def _sampled_bar(centred: Tensor, W_enc: Tensor, bias: Tensor, k: int) -> float:
    """A bar that 1.5 k entries a token exceed in a sample of the tokens; -inf for a small batch."""
    tokens = centred.shape[0]
    if tokens <= 4 * SAMPLE_TOKENS:
        return -math.inf
    sample = centred[:: tokens // SAMPLE_TOKENS][:SAMPLE_TOKENS]
    pre = torch.addmm(bias, sample, W_enc.detach().float().T).flatten()
    rank = min(pre.shape[0], 3 * k * sample.shape[0] // 2 + 64)
    bar = float(pre.topk(rank).values[-1])
    return bar if math.isfinite(bar) else -math.inf


def _collect(centred: Tensor, W_enc: Tensor, bias: Tensor, bar: float, wanted: int) -> list[Part]:
    """Parts (first token, counts, values, indices) with all entries >= `bar` that may be among the `wanted` largest."""
    # one step lower, since `above` takes entries that exceed a bar, and one that equals it may be among the largest
    bars = torch.full_like(bias, bar).nextafter(torch.tensor(-math.inf))
    parts: list[Part] = []
    collected = 0
    for start, first, product in product_tiles(centred, W_enc, TILE_TOKENS):
        parts.append((start, *above(product, bias, bars, first)))
        collected += parts[-1][2].shape[0]
        if collected > CROWDED * wanted:
            values = torch.cat([part[2] for part in parts])
            lowest = values.kthvalue(collected - wanted + 1).values
            bars = torch.fmax(bars, lowest.expand_as(bars).nextafter(torch.tensor(-math.inf)))
            parts = [_exceeding(part, bars[0]) for part in parts]
            collected = sum(part[2].shape[0] for part in parts)
    return parts


def _exceeding(part: Part, bar: Tensor) -> Part:
    """The entries of a part that exceed the bar."""
    start, counts, values, indices = part
    kept = ~(values <= bar)
    rows = torch.repeat_interleave(counts, output_size=values.shape[0])[kept]
    return start, torch.bincount(rows, minlength=counts.shape[0]), values[kept], indices[kept]


def _largest(values: Tensor, indices: Tensor, offsets: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `wanted` largest entries of CSR codes; NaN counts as largest, the first of equal entries wins."""
    if wanted == 0:
        return values[:0], indices[:0], torch.zeros_like(offsets)
    last = values.kthvalue(values.shape[0] - wanted + 1).values  # kthvalue sorts NaN last, as the largest
    if last.isnan():
        equal, kept = values.isnan(), torch.zeros_like(values, dtype=torch.bool)
    else:
        equal, kept = values == last, ~(values <= last)
    kept[equal.nonzero().squeeze(1)[: wanted - int(kept.sum())]] = True
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    return values[kept], indices[kept], before[offsets]
