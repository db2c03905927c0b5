"""Greedy selection, one atom after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.modules.codes.base import FixedK, register
from sae_kernels import SparseCodes, pursue


@register
class MatchingPursuit(FixedK):
    """k greedy steps on the residual: r_0 = x - b, j_t = argmax_j w_j·r_(t-1), f = w_j·r_(t-1), r_t = r_(t-1) - f w_j.

    Matching pursuit (Mallat & Zhang 1993) unrolled as an encoder (Costa et al. 2025). The encoder is the dictionary
    itself, with unit atoms. An atom is selected at most once, and only if its coefficient is positive.
    The gradient is the unrolled one, through every step's inner product and residual; the selection has none.
    """

    name = "matching_pursuit"
    tied = True

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Rectangular codes [N, k] in the order in which atoms were selected; `b_enc` is not used."""
        del b_enc
        residual = x if b_pre is None else x - b_pre
        with torch.no_grad():
            selected = pursue(residual, W_enc, self.k)
        if not torch.is_grad_enabled():
            return selected
        return selected.with_values(_Unrolled.apply(residual, W_enc, selected.indices))

    def activate(self, listed: SparseCodes) -> SparseCodes:
        return listed


class _Unrolled(torch.autograd.Function):
    """Values of the selected atoms, and their gradient through all steps; no step's residual is kept.

    Let f = relu(w·r), r' = r - f w, and g = ∂L/∂r'. Then t = ∂L/∂f - g·w (0 where f is 0) is the whole gradient by f,
    ∂L/∂w = t r - f g, ∂L/∂r = g + t w; and r is recovered as r' + f w.
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
