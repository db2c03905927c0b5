"""Corruptions of the inputs, from which a denoising autoencoder reconstructs the clean ones (Vincent et al. 2010).

noisy, where = corrupt("gaussian", 0.3, x, generator)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import unknown_choice


class Corrupted(NamedTuple):
    """Corrupted inputs."""

    x: Tensor
    """[N, D]"""
    where: Tensor
    """Which dimensions were corrupted, bool [N, D]."""


def _gaussian(x: Tensor, level: float, generator: torch.Generator) -> Corrupted:
    """x + level · N(0, 1), everywhere."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return Corrupted(x + level * noise, torch.ones_like(x, dtype=torch.bool))


def _masking(x: Tensor, level: float, generator: torch.Generator) -> Corrupted:
    """A share `level` of the dimensions set to zero."""
    where = torch.rand(x.shape, generator=generator, device=x.device) < level
    return Corrupted(torch.where(where, 0.0, x), where)


def _salt_and_pepper(x: Tensor, level: float, generator: torch.Generator) -> Corrupted:
    """A share `level` of the dimensions set to 0 or 1, by a fair coin."""
    drawn = torch.rand(x.shape, generator=generator, device=x.device)
    where = drawn < level
    return Corrupted(torch.where(where, (drawn < level / 2).to(x.dtype), x), where)


CORRUPTIONS: dict[str, Callable[[Tensor, float, torch.Generator], Corrupted]] = {
    "gaussian": _gaussian,
    "masking": _masking,
    "salt_and_pepper": _salt_and_pepper,
}
USUAL_LEVEL = {"gaussian": 0.3, "masking": 0.3, "salt_and_pepper": 0.2}
"""Default level: standard deviation, or share of dimensions."""


def corrupt(name: str, level: float, x: Tensor, generator: torch.Generator) -> Corrupted:
    """Inputs x [N, D], corrupted in the named way.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in CORRUPTIONS:
        raise unknown_choice("--corruption", name, CORRUPTIONS)
    return CORRUPTIONS[name](x, level, generator)
