"""Top-k encode, the reference: the shortest correct PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    """relu of the k largest of W_enc (x - b_pre) + b_enc, by value, the lowest index first among equals.

    x [N, d], W_enc [F, d], b_enc [F], b_pre [d] or None -> values [N, k], indices [N, k] int64. Half-precision inputs
    are compared in fp32, as every backend's accumulators are, and the values rounded at the end.
    """
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    compute = torch.promote_types(dtype, torch.float32)
    x, W_enc, b_enc = x.to(compute), W_enc.to(compute), b_enc.to(compute)
    centred = x if b_pre is None else x - b_pre.to(compute)
    pre = torch.nn.functional.linear(centred, W_enc, b_enc)
    # a stable descending sort keeps the lowest index first among equal values; topk promises no order
    values, indices = pre.sort(dim=-1, descending=True, stable=True)
    return torch.relu(values[:, :k]).to(dtype), indices[:, :k]
