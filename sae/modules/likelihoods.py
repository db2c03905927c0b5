"""Loss terms that say how likely a sample is under its reconstruction: nats a sample, summed over dimensions.

The textbook's "squared error" is the Gaussian of variance 1/2, but for a constant: ||x - x̂||² / (2 · 1/2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae.modules.losses import term
from sae.modules.views import Output


@term
def bernoulli(output: Output) -> Tensor:
    """-Σ_i x_i log x̂_i + (1 - x_i) log(1 - x̂_i), x in [0, 1] (Kingma & Welling 2014, appendix C.1), [N]."""
    if not output.squashed:
        raise ValueError("bernoulli: expected a head whose outputs are logits (--output sigmoid)")
    return bernoulli_nll(output.reconstruction, output.target)


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """The term `bernoulli` of logits and targets [N, D], [N]."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").sum(-1)


@term
def gaussian(output: Output, variance: float) -> Tensor:
    """||x - x̂||² / (2 σ²) + D/2 log(2 π σ²), σ² = `variance` (Kingma & Welling 2014, appendix C.2), [N]."""
    return gaussian_nll(output.squared_error(), output.target.shape[1], variance)


def gaussian_nll(error: Tensor, dimensions: int, variance: float) -> Tensor:
    """The term `gaussian` of squared errors [N] in D = `dimensions`, [N]."""
    return error / (2 * variance) + 0.5 * dimensions * math.log(2 * math.pi * variance)


@term
def squared_error_where_corrupted(output: Output) -> Tensor:
    """Σ over corrupted dimensions of (x - x̂)² (emphasis α = 1, β = 0: Vincent et al. 2010, 3.2), [N]."""
    if output.corrupted is None:
        raise ValueError("squared_error_where_corrupted: expected corrupted inputs; got none")
    return ((output.target - output.mean).float().pow(2) * output.corrupted).sum(-1)
