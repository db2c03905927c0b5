"""Batch top-k encode on the GPU: the survivors of a guessed bar, and the N k largest of them.

The product and its epilogue are threshold_encode's. The guess is the caller's or comes from a sample of tokens, and is
lowered a little, so that one product is usually enough. If too few entries survive, the bar of the sample is tried, and
then all pre-activations, for a part of the tokens at a time. A stable torch.sort selects among the about 1.1 N k
survivors; its time is small beside the product's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.gpu_product import operands
from sae_kernels.launch import device_of
from sae_kernels.threshold_encode.gpu import above_bars, dense_parts
from sae_kernels.tuning import EncodeConfig, threshold_config

SAMPLE_TOKENS = 64
CROWDED = 4
"""The dense path drops all but the N k largest when it has collected this many times N k entries."""


def batch_topk_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_pre: Tensor | None = None,
    guess: float | None = None,
    *,
    config: EncodeConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets = relu of the N k largest entries of W_enc (x - b_pre) + b_enc, as CSR codes.

    The product takes its inputs in the dtype that x and W_enc promote to; values have this dtype, and indices ascend in
    every token. `config` are the launch parameters, by default picked from the sizes and the device.
    """
    x, W_enc = operands(x, W_enc, b_pre)
    (N, d), F = x.shape, W_enc.shape[0]
    config = config or threshold_config(N, F, d, x.dtype, device_of(x), op="batch_topk_encode", k=k)
    b_enc, wanted = b_enc.contiguous(), N * k
    bars = [] if guess is None else [guess - 0.1 * abs(guess)]
    if N > 4 * SAMPLE_TOKENS:
        bars.append(None)
    for bar in bars:
        bar = _sampled_bar(x, W_enc, b_enc, k) if bar is None else torch.full((), bar, device=x.device)
        # fp32, so that the largest are selected before the sums are rounded
        codes = above_bars(x, W_enc, b_enc, bar.expand(F).contiguous(), config, torch.float32)
        if codes[0].shape[0] >= wanted:
            return _cut(*codes, wanted, x.dtype)
    return _dense(x, W_enc, b_enc, wanted, config)


def _sampled_bar(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Tensor:
    """A bar that 1.5 k entries a token exceed in a sample of the tokens, 0-dim; it stays on the device."""
    sample = x[:: x.shape[0] // SAMPLE_TOKENS][:SAMPLE_TOKENS]
    pre = (sample @ W_enc.T).float() + b_enc
    rank = min(pre.numel(), 3 * k * sample.shape[0] // 2 + 64)
    return pre.flatten().topk(rank).values[-1]


def _cut(
    values: Tensor, indices: Tensor, offsets: Tensor, wanted: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """relu of the `wanted` largest entries of CSR codes; NaN counts as largest, the first of equal entries wins."""
    kept = _largest(values, wanted)
    values = values[kept]
    # the number of entries kept before each token's first
    return torch.where(values < 0, 0, values).to(dtype), indices[kept], torch.searchsorted(kept, offsets)


def _dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, wanted: int, config: EncodeConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The same codes from all pre-activations, a part of the tokens at a time."""
    F = W_enc.shape[0]
    values = torch.empty(0, device=x.device)
    places = torch.empty(0, dtype=torch.int64, device=x.device)
    first = 0
    for pre in dense_parts(x, W_enc, b_enc, config):
        values = torch.cat([values, pre.flatten()])
        places = torch.cat([places, torch.arange(first, first + pre.numel(), device=x.device)])
        first += pre.numel()
        if values.shape[0] > CROWDED * wanted:
            kept = _largest(values, wanted)
            values, places = values[kept], places[kept]
    kept = _largest(values, wanted)
    values, places = values[kept], places[kept]
    offsets = torch.searchsorted(places, torch.arange(0, first + 1, F, device=x.device))
    return torch.where(values < 0, 0, values).to(x.dtype), places % F, offsets


def _largest(values: Tensor, wanted: int) -> Tensor:
    """Ascending places of the `wanted` largest; NaN counts as largest, the lowest place wins ties."""
    return values.sort(descending=True, stable=True).indices[:wanted].sort().values
