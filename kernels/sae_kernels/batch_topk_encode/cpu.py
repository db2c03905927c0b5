"""Batch top-k encode on the CPU: everything above a guessed threshold is collected, the exact cut made among that.

The guess is the caller's, or comes from a sample of tokens; it is lowered a little, so that one product is enough as
a rule. Too many entries: the bar rises on the way to what the entries so far prove. Too few: once more, with the bar
of the sample, and if that fails too, from no bar at all.
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
# of the collected entries, in multiples of what is kept, before the bar is raised
CROWDED = 4

Part = tuple[int, Tensor, Tensor, Tensor]


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None, guess: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See op.py -> values [N k], indices [N k] int64, offsets [N+1] int64."""
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
    # some of the wanted entries are -inf, which exceeds no bar
    note("batch_topk_encode", "naive")
    return naive.batch_topk_encode(x, W_enc, b_enc, k, b_pre, guess)


def _sampled_bar(centred: Tensor, W_enc: Tensor, bias: Tensor, k: int) -> float:
    """A bar that a little more than k entries a token exceed, to judge by some of the tokens."""
    tokens = centred.shape[0]
    if tokens <= 4 * SAMPLE_TOKENS:
        return -math.inf
    sample = centred[:: tokens // SAMPLE_TOKENS][:SAMPLE_TOKENS]
    pre = torch.addmm(bias, sample, W_enc.detach().float().T).flatten()
    rank = min(pre.shape[0], 3 * k * sample.shape[0] // 2 + 64)
    bar = float(pre.topk(rank).values[-1])
    return bar if math.isfinite(bar) else -math.inf


def _collect(centred: Tensor, W_enc: Tensor, bias: Tensor, bar: float, wanted: int) -> list[Part]:
    """Parts (first token, counts, values, indices) of all entries from `bar` up that may be among the largest."""
    # one step below: what equals the bar may belong to the largest, and `above` asks for more than its bar
    bars = torch.full_like(bias, bar).nextafter(torch.tensor(-math.inf))
    parts: list[Part] = []
    held = 0
    for start, first, product in product_tiles(centred, W_enc, TILE_TOKENS):
        parts.append((start, *above(product, bias, bars, first)))
        held += parts[-1][2].shape[0]
        if held > CROWDED * wanted:
            values = torch.cat([part[2] for part in parts])
            proven = values.kthvalue(held - wanted + 1).values
            bars = torch.fmax(bars, proven.expand_as(bars).nextafter(torch.tensor(-math.inf)))
            parts = [_exceeding(part, bars[0]) for part in parts]
            held = sum(part[2].shape[0] for part in parts)
    return parts


def _exceeding(part: Part, bar: Tensor) -> Part:
    """The entries of a part that exceed the bar."""
    start, counts, values, indices = part
    kept = ~(values <= bar)
    rows = torch.repeat_interleave(counts, output_size=values.shape[0])[kept]
    return start, torch.bincount(rows, minlength=counts.shape[0]), values[kept], indices[kept]


def _largest(values: Tensor, indices: Tensor, offsets: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `wanted` largest entries of CSR codes, NaN first, equal ones in the order of the codes."""
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
