"""Top-k encode, the reference: the shortest correct PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.threshold_encode.naive import dense_pre_activations


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] = relu of the k largest of W_enc (x - b_pre) + b_enc, the lowest index first among equals.

    Half-precision inputs are multiplied and compared in fp32, as in every backend, and the values rounded at the end.
    """
    pre = dense_pre_activations(x, W_enc, b_enc, b_pre)
    # a stable descending sort keeps the lowest index first among equal values; topk promises no order
    values, indices = pre.sort(dim=-1, descending=True, stable=True)
    return torch.relu(values[:, :k]).to(torch.promote_types(x.dtype, W_enc.dtype)), indices[:, :k]
