"""Loss terms: plain functions that return one value a sample, summed over dimensions; one reduction for all.

    loss, parts = total_loss({"squared_error": 1.0, "auxk": 1 / 32}, step)

Every term takes a `Step` and returns [N]; the loss is the weighted sum of their means over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import unknown_choice
from sae_kernels import SparseCodes


class Step(NamedTuple):
    """Everything one training step knows, for loss terms to choose from."""

    x: Tensor
    """Inputs [N, d]."""
    target: Tensor
    """What is to be reconstructed [N, d_out]."""
    codes: SparseCodes
    """Latent codes of x."""
    reconstruction: Tensor
    """[N, d_out]."""
    W_enc: Tensor
    """[F, d]."""
    b_enc: Tensor
    """[F]."""
    b_pre: Tensor
    """Subtracted from the input before encoding [d]."""
    W_dec: Tensor
    """Atoms [F, d_out]."""
    dead: Tensor
    """Indices of the dead latents, int64 [n_dead]; refreshed every few steps by the trainer."""
    auxk: int
    """How many dead latents the auxiliary loss uses."""


def squared_error(step: Step) -> Tensor:
    """||x - x̂||², summed over dimensions, [N]."""
    return (step.target - step.reconstruction).float().pow(2).sum(-1)


def auxk(step: Step) -> Tensor:
    """||e - ê||² / Var(e), ê from the top `auxk` dead latents (Gao et al. 2024, appendix A.2), [N].

    e is the *detached* residual, ê its reconstruction from the dead latents' largest pre-activations, without the
    decoder bias. Var(e) is the mean over samples of ||e - mean(e)||². Zero where no latent is dead, and where the
    quotient is not a number (an exactly constant residual). Dense on the compacted rows of the dead latents: the
    gradient reaches their rows of W_enc, b_enc and W_dec.
    """
    error = (step.target - step.reconstruction).detach().float()
    if step.dead.numel() == 0:
        return error.new_zeros(error.shape[0])
    pre = torch.nn.functional.linear(step.x - step.b_pre, step.W_enc[step.dead], step.b_enc[step.dead])
    values, chosen = pre.topk(min(step.auxk, step.dead.numel()), dim=-1)
    code = torch.zeros_like(pre).scatter(1, chosen, torch.relu(values))
    estimate = (code @ step.W_dec[step.dead]).float()
    variance = (error - error.mean(0)).pow(2).sum(-1).mean()
    return torch.nan_to_num((error - estimate).pow(2).sum(-1) / variance, nan=0.0, posinf=0.0)


TERMS: dict[str, Callable[[Step], Tensor]] = {"squared_error": squared_error, "auxk": auxk}


def total_loss(weights: Mapping[str, float], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms' means over samples, and each unweighted mean (detached, 0-dim).

    Raises:
        ConfigError: a term is unknown.
    """
    parts: dict[str, Tensor] = {}
    loss = torch.zeros((), device=step.x.device)
    for name, weight in weights.items():
        if name not in TERMS:
            raise unknown_choice("loss term", name, TERMS)
        mean = TERMS[name](step).mean()
        parts[name] = mean.detach()
        loss = loss + weight * mean
    return loss, parts
