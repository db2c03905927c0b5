"""What a trainer is given: an autoencoder, its loss, and how it likes to be trained. Made by both tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sae.config import SAEConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term


class Corruption(NamedTuple):
    """What is done to the inputs of a denoising autoencoder, in training alone."""

    name: str
    """In `sae.modules.corruption.CORRUPTIONS`."""
    level: float
    """Standard deviation of the noise, or share of the dimensions."""


class Recipe(NamedTuple):
    """An untrained autoencoder and everything about its training that is its variant's."""

    config: SAEConfig
    """The settings it was made from."""
    model: Autoencoder
    """Uninitialised."""
    terms: Sequence[Term]
    """The whole loss, with what revives dead latents."""
    site_widths: list[int]
    """Widths of the places it reads, side by side."""
    target_widths: list[int]
    """Widths of the places it writes."""
    penalty: str | None = None
    """The term whose weight a controller may move (see `sae.training.sparsity`)."""
    revival: str = "none"
    """How dead latents are revived: auxk, resample, pre_activation or none."""
    beta1: float = 0.9
    """Adam's decay of the first moment unless --beta1 says otherwise."""
    lr: float | None = None
    """Peak learning rate unless --lr says otherwise; None for the rule of `sae.training.schedules`."""
    corruption: Corruption | None = None
    rate_momentum: float | None = None
    """Decay of the latents' running mean values, where a term reads them."""
