"""Sums of all of a tensor's values, in an order that the number of threads has no part in."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024


def total(values: Tensor) -> Tensor:
    """Sum of all values, 0-dim.

    `values.sum()` gives every thread a share of a large tensor, so that its last bits follow the number of threads;
    here each block of 1,024 is added up by one thread, then the blocks' sums likewise.
    """
    flat = values.flatten()
    while flat.numel() > BLOCK:
        whole = flat.numel() // BLOCK * BLOCK
        sums = flat[:whole].view(-1, BLOCK).sum(1)
        flat = torch.cat([sums, flat[whole:].sum(0, keepdim=True)])
    return flat.sum()
