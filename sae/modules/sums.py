"""Sums of all of a tensor's values, in an order that does not depend on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024


def total(values: Tensor) -> Tensor:
    """Sum of all values, 0-dim.

    `values.sum()` splits a large tensor among threads, so that its last bits depend on their number; here one thread
    adds up each block of 1,024, then the blocks' sums in the same way.
    """
    flat = values.flatten()
    while flat.numel() > BLOCK:
        whole = flat.numel() // BLOCK * BLOCK
        sums = flat[:whole].view(-1, BLOCK).sum(1)
        flat = torch.cat([sums, flat[whole:].sum(0, keepdim=True)])
    return flat.sum()
