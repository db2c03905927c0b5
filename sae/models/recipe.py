"""What a trainer needs of a variant: an autoencoder, its loss, and defaults of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sae.config import SAEConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term


class Corruption(NamedTuple):
    """Noise on the inputs of a denoising autoencoder, in training alone."""

    name: str
    """In `sae.modules.corruption.CORRUPTIONS`."""
    level: float
    """Standard deviation of the noise, or share of the dimensions."""


class Recipe(NamedTuple):
    """An untrained autoencoder and all that its variant says about its training."""

    config: SAEConfig
    """The settings it was made from."""
    model: Autoencoder
    """Not yet initialised."""
    terms: Sequence[Term]
    """The whole loss, with the term that revives dead latents."""
    site_widths: list[int]
    """Widths of the sites it reads, side by side."""
    target_widths: list[int]
    """Widths of the sites it reconstructs."""
    penalty: str | None = None
    """The term whose weight a controller may move (see `sae.training.sparsity`)."""
    revival: str = "none"
    """How dead latents are revived: auxk, resample, pre_activation or none."""
    lr: float | None = None
    """Peak learning rate, unless --lr is given; None for the rule of `sae.training.schedules`."""
    corruption: Corruption | None = None
    rate_momentum: float | None = None
    """Decay of the latents' running mean values, where a term reads them."""
