"""The precision in which activations wait for training, chosen on the first forward pass.

choice = choose_precision({"resid_post.12": Kept(rows, limit=9.1e4)})
choice.name, choice.reason       # "bfloat16", "norms up to 9.1e+04 are kept of resid_post.12, over float16's 65504"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sae.harvest.int8 import row_bytes

PRECISIONS = ("float16", "bfloat16", "float32")
"""From the one that rounds least in two bytes to the one that takes four."""
STORED = (*PRECISIONS, "int8")
"""What a store may be in; int8 is never chosen by itself."""
ROUNDING = 1e-3  # share of the variance that rounding may cost: far below the FVU of any sparse autoencoder
ROUNDED_ROWS = 4096  # rows on which that share is measured


class Kept(NamedTuple):
    """What the first forward pass shows of the rows of one site that a training stream keeps."""

    rows: Tensor
    """[n, d], in the model's precision."""
    limit: float | None
    """Norm over which rows are left out, in this pass and in later ones; None where rows of any norm are kept."""


class Choice(NamedTuple):
    """A precision, and the reason for it."""

    name: str
    """In `PRECISIONS`."""
    reason: str
    """A clause for people."""


def choose_precision(sites: Mapping[str, Kept]) -> Choice:
    """The first of `PRECISIONS` that no later row can overflow and whose rounding is negligible.

    Negligible is `ROUNDING` of the variance, which also covers small values that become zero. No value of a row exceeds
    the row's norm, so a norm limit that fits holds for the whole data set.
    """
    reasons = []
    for name in PRECISIONS[:-1]:
        faults = [fault for site, kept in sites.items() if (fault := _fault(site, kept, name))]
        if not faults:
            return Choice(
                name, "; ".join(reasons) or "norms up to the limit fit, and rounding costs nothing that counts"
            )
        reasons.append(faults[0])
    return Choice(PRECISIONS[-1], "; ".join(reasons))


def _fault(site: str, kept: Kept, name: str) -> str | None:
    """The reason against a precision, if there is one."""
    dtype = getattr(torch, name)
    largest = torch.finfo(dtype).max
    if kept.limit is None and name == "float16":
        return f"tokens of any norm are kept of {site}, and float16 ends at {largest:.6g}"
    if kept.limit is not None and kept.limit > largest:
        return f"norms up to {kept.limit:.3g} are kept of {site}, over {name}'s {largest:.6g}"
    cost = rounding_cost(kept.rows[:ROUNDED_ROWS], dtype)
    return f"{name} rounds away {cost:.2g} of the variance of {site}" if cost > ROUNDING else None


def rounding_cost(rows: Tensor, dtype: torch.dtype) -> float:
    """Σ (x - rounded x)² / Σ (x - mean)² of rows [n, d] kept in `dtype`; 0 where nothing varies."""
    x = rows.double()
    variance = (x - x.mean(0)).square().sum()
    return ((x - x.to(dtype)).square().sum() / variance).item() if variance > 0 else 0.0


def read_dtype(precision: str) -> torch.dtype:
    """The type in which activations of a store in this precision are read: float32 for int8."""
    return torch.float32 if precision == "int8" else getattr(torch, precision)


def stored_bytes(precision: str, width: int) -> int:
    """Bytes of a row of `width` in a store; auto takes two bytes a number nearly always."""
    if precision == "int8":
        return row_bytes(width)
    return width * (2 if precision == "auto" else getattr(torch, precision).itemsize)
