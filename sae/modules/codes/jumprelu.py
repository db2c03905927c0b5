"""A learnt threshold a latent, and the straight-through estimates that train it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sae.modules.codes.base import Code, above, register
from sae_kernels import SparseCodes


@register
class JumpReLU(Code):
    """f = pre · 1[pre > θ], pre = W (x - b_pre) + b, θ [F] a threshold a latent (Rajamanoharan et al. 2024, eq. 3).

    The jump has no gradient by θ; the straight-through estimate of eq. 11 takes its place, ∂f/∂θ = -(θ/ε) rect((pre -
    θ)/ε), where rect is 1 inside (-1/2, 1/2), so entries of the window below θ must be listed too. By pre the gradient
    is the true one, 1[pre > θ]. θ is kept in float32 and not as its logarithm.

    Args:
        width: number of latents F.
        bandwidth: ε; 0 for a code that is not trained.
        theta: its value at the start.
        rate: learning rate of θ, in multiples of the others'.
    """

    name = "jumprelu"

    def __init__(self, width: int, bandwidth: float = 0.0, theta: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.bandwidth, self.start, self.rate = bandwidth, theta, rate
        self.theta = nn.Parameter(torch.full((width,), theta))

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; CSR with the entries over θ - ε/2, or dense while these are more than a tenth."""
        return above(x, W_enc, b_enc, b_pre, self.theta.detach(), self.bandwidth / 2)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """See `Code`."""
        theta = self.theta[listed.indices]
        return listed.with_values(_Jump.apply(listed.values, theta, self.bandwidth))

    def steps(self, listed: SparseCodes) -> Tensor:
        """1[pre > θ] of every entry, with ∂/∂θ = -(1/ε) rect((pre - θ)/ε) (eq. 12) and nothing by pre."""
        return _Step.apply(listed.values, self.theta[listed.indices], self.bandwidth)

    @torch.no_grad()
    def constrain(self) -> None:
        """See `Code`; a threshold is never negative."""
        self.theta.clamp_min_(0)

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        """See `Code`."""
        self.theta[latents] = self.start

    def describe(self) -> dict[str, Any]:
        """See `Code`; what trains it is not part of what it computes."""
        return {"name": self.name, "width": self.theta.shape[0]}

    def rescaled(self, factors: Tensor) -> JumpReLU:
        """See `Code`."""
        code = JumpReLU(self.theta.shape[0])
        code.theta.data = self.theta.detach() * factors
        return code


class _Jump(torch.autograd.Function):
    """See `JumpReLU`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return torch.where(pre > theta, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (pre, theta), (grad,) = ctx.saved_tensors, grads
        by_pre = torch.where(pre > theta, grad, 0)
        if not ctx.bandwidth:
            return by_pre, None, None
        return by_pre, -theta / ctx.bandwidth * _inside(pre, theta, ctx.bandwidth) * grad.float(), None


class _Step(torch.autograd.Function):
    """See `JumpReLU.steps`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (pre, theta), (grad,) = ctx.saved_tensors, grads
        return None, -_inside(pre, theta, ctx.bandwidth) / ctx.bandwidth * grad, None


def _inside(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """rect((pre - θ)/ε): both halves of the window."""
    return ((pre - theta).abs() < bandwidth / 2).float()
