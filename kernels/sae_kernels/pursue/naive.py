"""Matching pursuit, the reference: a product with every atom at each step."""

from __future__ import annotations

import torch
from torch import Tensor


def pursue(x: Tensor, W: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] of k greedy steps: j = argmax w_j·r among atoms left, f = relu(w_j·r), r -= f w_j."""
    compute = torch.promote_types(torch.promote_types(x.dtype, W.dtype), torch.float32)
    residual, W = x.to(compute), W.to(compute)
    selected = torch.zeros(x.shape[0], W.shape[0], dtype=torch.bool, device=x.device)
    values, indices = [], []
    for _ in range(k):
        pre = (residual @ W.T).masked_fill(selected, -torch.inf)
        value, index = pre.max(1)
        value = torch.relu(value)
        residual = residual - value.unsqueeze(1) * W[index]
        selected.scatter_(1, index.unsqueeze(1), True)
        values.append(value)
        indices.append(index)
    return torch.stack(values, 1).to(x.dtype), torch.stack(indices, 1)
