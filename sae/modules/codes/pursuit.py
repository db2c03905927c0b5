"""Greedy selection, one atom after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.modules.codes.base import Code, register, same
from sae_kernels import SparseCodes, pursue


@register
class MatchingPursuit(Code):
    """k greedy steps on the residual: r_0 = x - b, j_t = argmax_j w_j·r_(t-1), f = w_j·r_(t-1), r_t = r_(t-1) - f w_j.

    Matching pursuit (Mallat & Zhang 1993) unrolled as an encoder (Costa et al. 2025). The encoder is the dictionary
    itself, with unit atoms. An atom is taken once, and only where it shortens the residual by a positive amount.
    The gradient is the unrolled one, through every step's inner product and residual; the selection has none.
    """

    name = "matching_pursuit"
    tied = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; rectangular codes [N, k] in the order in which they were taken; `b_enc` has no part in it."""
        del b_enc
        residual = x if b_pre is None else x - b_pre
        with torch.no_grad():
            chosen = pursue(residual, W_enc, self.k)
        if not torch.is_grad_enabled():
            return chosen
        atoms = W_enc[chosen.indices]
        values = []
        for step in range(self.k):
            atom = atoms[:, step]
            value = torch.relu((atom * residual).sum(1))
            residual = residual - value.unsqueeze(1) * atom
            values.append(value)
        return chosen.with_values(torch.stack(values, 1))

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """See `Code`."""
        return listed

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": self.name, "k": self.k}

    def rescaled(self, factors: Tensor) -> MatchingPursuit | None:
        """See `Code`; atoms of one common length, which is then taken out again."""
        return self if same(factors) else None
