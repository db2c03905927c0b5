"""Transcoders that read what the norm before the MLP puts out, without the norm's gain.

    model = divided_by_gain(model, gain_of(language_model, "model.layers.3"))

No module of a language model puts that out: a norm's output is n ⊙ g, with n the normalised residual and g the gain.
The weights take the division up: W n = (W / g) (n ⊙ g), so that the autoencoder then reads the norm's own output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sae.config import ConfigError
from sae.harvest.places import norm_before_mlp
from sae.models.autoencoder import Autoencoder


@torch.no_grad()
def gain_of(language_model: nn.Module, block: str) -> Tensor:
    """g [d], the gain of the norm before the MLP of a block (its path): what it makes of a vector of ones.

    So it is g for norms that multiply by their weight, and for Gemma's, which multiply by 1 + weight.

    Raises:
        SiteError: the block has no such norm.
        ConfigError: it subtracts a mean, adds a bias, or its gain has zeros.
    """
    part = language_model.get_submodule(block)
    name = norm_before_mlp(part)
    norm = part.get_submodule(name)
    weight = next(norm.parameters())
    # large, so that the norm's epsilon is lost in rounding
    ones = torch.full(weight.shape, 1e3, device=weight.device)
    gain, opposite = (norm(sign * ones).float().cpu() for sign in (1, -1))
    if not torch.equal(gain, -opposite) or not gain.abs().min() > 0:
        raise ConfigError(f"{block}.{name} ({type(norm).__name__}): expected an RMS norm with a gain that is nowhere 0")
    return gain


@torch.no_grad()
def divided_by_gain(model: Autoencoder, gain: Tensor) -> Autoencoder:
    """The transcoder that makes of n ⊙ g [N, d] what `model` makes of n.

    Raises:
        ConfigError: it subtracts a bias from its inputs, or has another width.
    """
    if model.b_pre is not None or gain.shape != (model.dim,):
        raise ConfigError(f"a gain {tuple(gain.shape)} cannot be folded into an autoencoder of width {model.dim}")
    divided = model.like(model.code)
    divided.W_enc.div_(gain)
    if divided.W_skip is not None:
        divided.W_skip.div_(gain)
    return divided.eval()
