"""A learnt threshold for each latent, and the straight-through estimates that train it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae.modules.codes.base import DENSE_ABOVE, Code, above, dense, per_entry, register
from sae_kernels import SparseCodes


@register
class JumpReLU(Code):
    """f = pre · 1[pre > θ], pre = W (x - b_pre) + b, θ [F] one threshold a latent (Rajamanoharan et al. 2024, eq. 3).

    The jump has no gradient by θ; the straight-through estimate of eq. 11 takes its place, ∂f/∂θ = -(θ/ε) rect((pre -
    θ)/ε), where rect is 1 inside (-1/2, 1/2), so entries of the window below θ must be listed too. By pre the gradient
    is the true one, 1[pre > θ], and with `through` the estimate as well, with the other sign, because the jump depends
    on pre - θ alone: it then reaches all parameters (Conerly et al. 2025). θ is kept in float32 and not as its
    logarithm.

    An entry below θ adds nothing to the reconstruction and costs as much as an active one. A wide window holds many of
    them, so only one of every `every` tokens lists them, and there each counts `every` times: averaged over batches in
    random order, the estimate is the same.

    Args:
        width: number of latents F.
        bandwidth: ε; 0 for a code that is not trained.
        theta: initial value.
        rate: learning rate of θ, as a multiple of the model's.
        through: whether the estimates reach the pre-activations.
        every: one of this many tokens lists the window below θ.
    """

    name = "jumprelu"

    def __init__(
        self,
        width: int,
        bandwidth: float = 0.0,
        theta: float = 0.0,
        rate: float = 1.0,
        through: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.bandwidth, self.start, self.rate, self.through, self.every = bandwidth, theta, rate, through, every
        self.theta = nn.Parameter(torch.full((width,), theta))

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """CSR with the entries over θ - ε/2, or dense while these are more than a tenth."""
        theta, margin = self.theta.detach(), self.bandwidth / 2
        if self.every == 1:
            return above(self, x, W_enc, b_enc, b_pre, theta, margin)
        windowed = torch.arange(x.shape[0], device=x.device) % self.every == 0
        parts = (
            above(self, x[windowed], W_enc, b_enc, b_pre, theta, margin, DENSE_ABOVE * self.every),
            above(self, x[~windowed], W_enc, b_enc, b_pre, theta),
        )
        if any(part.offsets is None for part in parts):
            return dense(x, W_enc, b_enc, b_pre)
        return interleaved(*parts, windowed)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        theta = per_entry(self.theta, listed)
        return listed.with_values(_Jump.apply(listed.values, theta, self._window(listed)))

    def steps(self, listed: SparseCodes) -> Tensor:
        """1[pre > θ] for every entry, with ∂/∂θ = -(1/ε) rect((pre - θ)/ε) (eq. 12).

        ∂/∂pre is 0 or, with `through`, the same with the opposite sign.
        """
        return _Step.apply(listed.values, per_entry(self.theta, listed), self._window(listed))

    def _window(self, listed: SparseCodes) -> _Window:
        return _Window(self.bandwidth, self.through, 1 if listed.offsets is None else self.every)

    @torch.no_grad()
    def constrain(self) -> None:
        self.theta.clamp_min_(0)

    def threshold(self, latents: Tensor) -> Tensor:
        return self.theta.detach()[latents]

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        self.theta[latents] = self.start

    def describe(self) -> dict[str, Any]:
        # how it was trained is no part of what it computes
        return {"name": self.name, "width": self.theta.shape[0]}

    def rescaled(self, factors: Tensor) -> JumpReLU:
        code = JumpReLU(self.theta.shape[0])
        code.theta.data = self.theta.detach() * factors
        return code


class _Window(NamedTuple):
    """The window of the straight-through estimates."""

    bandwidth: float
    """ε."""
    through: bool
    """Whether the estimates reach the pre-activations."""
    below: int
    """Weight of an entry in the lower half."""

    def rect(self, pre: Tensor, theta: Tensor) -> Tensor:
        """rect((pre - θ)/ε): both halves of the window, float32."""
        inside = ((pre - theta).abs() < self.bandwidth / 2).float()
        return inside if self.below == 1 else inside * torch.where(pre > theta, 1, self.below)


class _Jump(torch.autograd.Function):
    """pre · 1[pre > θ], with the estimates of `JumpReLU` as its gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, window: _Window) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.window = window
        return torch.where(pre > theta, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (pre, theta), (grad,), window = ctx.saved_tensors, grads, ctx.window
        by_pre = torch.where(pre > theta, grad, 0)
        if not window.bandwidth:
            return by_pre, None, None
        jump = theta / window.bandwidth * window.rect(pre, theta) * grad.float()
        return by_pre + jump.to(by_pre.dtype) if window.through else by_pre, -jump, None


class _Step(torch.autograd.Function):
    """1[pre > θ], with the gradient of `JumpReLU.steps`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, window: _Window) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.window = window
        return (pre > theta).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (pre, theta), (grad,), window = ctx.saved_tensors, grads, ctx.window
        jump = window.rect(pre, theta) / window.bandwidth * grad
        return jump.to(pre.dtype) if window.through else None, -jump, None


def interleaved(ours: SparseCodes, others: SparseCodes, mask: Tensor) -> SparseCodes:
    """CSR codes of N tokens from those of the tokens in the mask [N] and those of the others, each in order."""
    counts = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    for part, tokens in ((ours, mask), (others, ~mask)):
        assert part.offsets is not None
        counts[tokens] = part.offsets.diff()
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    # an entry's place: its token's first place, plus the number of that token's entries before it
    places = []
    for part, tokens in ((ours, mask), (others, ~mask)):
        assert part.offsets is not None
        shift = (offsets[:-1][tokens] - part.offsets[:-1])[part.rows()]
        places.append(shift + torch.arange(len(shift), device=shift.device))
    order = torch.cat(places)
    values, indices = torch.cat([ours.values, others.values]), torch.cat([ours.indices, others.indices])
    return SparseCodes(
        torch.empty_like(values).scatter(0, order, values),
        torch.empty_like(indices).scatter(0, order, indices),
        ours.width,
        offsets,
    )
