"""Batch top-k encode, the reference: one stable sort of all pre-activations of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.threshold_encode.naive import dense_pre_activations


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None, guess: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets = relu of the N k largest entries of W_enc (x - b_pre) + b_enc, as CSR codes."""
    pre = dense_pre_activations(x, W_enc, b_enc, b_pre)
    tokens, width = pre.shape
    order = pre.detach().flatten().sort(descending=True, stable=True).indices
    kept = order[: tokens * k].sort().values
    rows = kept // width
    offsets = torch.searchsorted(rows, torch.arange(tokens + 1, device=rows.device))
    return torch.relu(pre.flatten()[kept]).to(torch.promote_types(x.dtype, W_enc.dtype)), kept % width, offsets
