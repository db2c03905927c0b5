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
        return chosen.with_values(_Unrolled.apply(residual, W_enc, chosen.indices))

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """See `Code`."""
        return listed

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": self.name, "k": self.k}

    def rescaled(self, factors: Tensor) -> MatchingPursuit | None:
        """See `Code`; atoms of one common length, which is then taken out again."""
        return self if same(factors) else None


class _Unrolled(torch.autograd.Function):
    """The values of the atoms chosen, and their gradient through all steps; no step's residual is kept.

    With f = relu(w·r) and r' = r - f w, and g the gradient by r': by f it is t = ∂L/∂f - g·w (0 where f is 0), by w it
    is t r - f g, by r it is g + t w; and r is r' + f w.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, indices: Tensor) -> Tensor:
        residual = x.clone()
        values = x.new_empty(indices.shape)
        for step in range(indices.shape[1]):
            atom = W[indices[:, step]]
            value = torch.relu((atom * residual).sum(1))
            residual.sub_(value.unsqueeze(1) * atom)
            values[:, step] = value
        ctx.save_for_backward(residual, W, indices, values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        residual, W, indices, values = ctx.saved_tensors
        residual, by_residual, by_W = residual.clone(), torch.zeros_like(residual), torch.zeros_like(W)
        for step in reversed(range(indices.shape[1])):
            atom, value = W[indices[:, step]], values[:, step : step + 1]
            residual.add_(value * atom)
            by_value = grads[0][:, step : step + 1] - (by_residual * atom).sum(1, keepdim=True)
            by_value = torch.where(value > 0, by_value, 0)
            by_W.index_add_(0, indices[:, step], by_value * residual - value * by_residual)
            by_residual.add_(by_value * atom)
        return by_residual, by_W, None
