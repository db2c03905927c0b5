"""What a trainer's first weights are fitted to: the pre-bias, and the biases of sparse variants."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.models.autoencoder import Autoencoder


@torch.no_grad()
def fit_biases(model: Autoencoder, x: Tensor, rate: float) -> None:
    """Fit the encoder biases to embedded inputs x [N, d], so that every latent fires on the share `rate` of them.

    Otherwise half of all latents would fire at first, and the first steps would only switch them off.
    """
    centred = x if model.b_pre is None else x - model.b_pre
    rank = max(1, round(rate * len(x)))
    for rows in torch.arange(model.width, device=x.device).split(4096):
        pre = centred @ model.W_enc[rows].T
        bar = pre.topk(rank, dim=0).values[-1]
        model.b_enc[rows] = model.code.threshold(rows) - bar


def geometric_median(points: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to `points` [n, d], by Weiszfeld's iteration (Weiszfeld 1937)."""
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-8)
        moved = (weights @ points) / weights.sum()
        if (moved - median).norm() <= tolerance * moved.norm():
            return moved
        median = moved
    return median
