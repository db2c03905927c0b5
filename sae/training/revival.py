"""Resampling: dead latents restart from inputs that the autoencoder reconstructs badly."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.models.autoencoder import Autoencoder

ENCODER_SHARE = 0.2  # of the mean norm of the living latents' encoder rows


@torch.no_grad()
def resample(
    model: Autoencoder,
    dead: Tensor,
    x: Tensor,
    target: Tensor,
    error: Tensor,
    generator: torch.Generator,
) -> None:
    """Point every dead latent at an input, drawn with probability ∝ error² (Bricken et al. 2023).

    Its atom becomes the unit vector of the target minus the bias, its encoder row the unit vector of the input minus
    the bias times a fifth of the living rows' mean norm, its bias 0; the code's own parameters are reset, and it
    counts as alive. Call the optimizer's `forget` afterwards.

    Args:
        model: changed in place.
        dead: indices [R].
        x, target: the step's inputs [N, d] and targets [N, d_out], normalised.
        error: squared error of every token [N].
        generator: on the CPU; the only source of randomness.
    """
    if dead.numel() == 0:
        return
    chances = error.detach().double().square().cpu()
    chances = chances if torch.isfinite(chances).all() and chances.sum() > 0 else torch.ones_like(chances)
    # not multinomial, which stops at 2^24 rows
    drawn = torch.rand(dead.numel(), generator=generator, dtype=torch.float64) * chances.sum()
    rows = torch.searchsorted(chances.cumsum(0), drawn).clamp_max(len(chances) - 1).to(x.device)
    alive = torch.ones(model.width, dtype=torch.bool, device=dead.device)
    alive[dead] = False
    atoms = torch.nn.functional.normalize(target[rows] - model.dictionary.b, dim=1)
    model.dictionary.W[dead] = atoms
    if not model.code.tied:
        centred = x[rows] if model.b_pre is None else x[rows] - model.b_pre
        length = model.W_enc[alive].norm(dim=1).mean() if alive.any() else torch.ones(())
        model.W_enc[dead] = torch.nn.functional.normalize(centred, dim=1) * (ENCODER_SHARE * length)
        model.b_enc[dead] = 0
    model.code.restart(dead)
    model.dictionary.tokens_since_fired[dead] = 0
