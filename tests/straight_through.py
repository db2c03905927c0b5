"""A JumpReLU at chosen pre-activations: its straight-through gradients, and the slopes that they estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes import JumpReLU
from sae_kernels import SparseCodes

GRID = torch.linspace(-0.5, 0.5, 400_001, dtype=torch.float64)
PLACES = [0.2, 0.46, 0.51, 0.6, 0.69, 0.71, 0.8, 0.89, 0.94, 1.3]
THETA, WIDTH = 0.7, 0.5


def listed(values: Tensor) -> SparseCodes:
    """One token with an entry for each value."""
    return SparseCodes(values.unsqueeze(0), torch.arange(len(values)).unsqueeze(0), len(values))


def smoothed_slope(function: object, theta: float, bandwidth: float) -> float:
    """d/dθ of the mean of `function(u, θ)` over u uniform in (-ε/2, ε/2), by central differences."""
    step = bandwidth / 50
    u = GRID * bandwidth
    return ((function(u, theta + step).mean() - function(u, theta - step).mean()) / (2 * step)).item()  # type: ignore[operator]


def jump(bandwidth: float = WIDTH) -> JumpReLU:
    return JumpReLU(len(PLACES), bandwidth=bandwidth, theta=THETA)


def gradients(of_values: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient of the values' (or steps') sum by θ and by the pre-activations."""
    code, pre = jump(), torch.tensor(PLACES, requires_grad=True)
    entries = listed(pre)
    out = code.activate(entries).values if of_values else code.steps(entries)
    by_theta, by_pre = torch.autograd.grad(out.sum(), [code.theta, pre], allow_unused=True)
    return by_theta, by_pre
