"""Threshold encode, the reference: dense pre-activations and a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, margin: float, b_pre: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices, offsets of every entry of W_enc (x - b_pre) + b_enc that is not <= theta - margin."""
    pre = dense_pre_activations(x, W_enc, b_enc, b_pre)
    kept = ~(pre <= theta.to(pre.dtype) - margin)
    rows, indices = kept.nonzero(as_tuple=True)
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return pre[rows, indices].to(torch.promote_types(x.dtype, W_enc.dtype)), indices, offsets


def dense_pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> Tensor:
    """W_enc (x - b_pre) + b_enc [N, F] in fp32 (fp64 for fp64)."""
    compute = torch.promote_types(torch.promote_types(x.dtype, W_enc.dtype), torch.float32)
    centred = x.to(compute) if b_pre is None else x.to(compute) - b_pre.to(compute)
    return torch.nn.functional.linear(centred, W_enc.to(compute), b_enc.to(compute))
