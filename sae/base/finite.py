"""Whether a tensor holds finite numbers alone, found without a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(x: Tensor) -> bool:
    """Whether every entry is finite. One pass: the extremes are NaN where an entry is, and infinite where one is."""
    return x.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(x))).all())


def first_not_finite(x: Tensor) -> int:
    """The first row of [n, d] with an entry that is not finite."""
    return int(not_finite(x).nonzero()[0])


def not_finite(x: Tensor) -> Tensor:
    """Whether each row of [n, d] has an entry that is not finite, bool [n]."""
    return (~torch.isfinite(x)).any(dim=1)
