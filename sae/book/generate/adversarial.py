"""The discriminator and the two losses of the game that it plays with a generator.

critic, generator = GAMES["non_saturating"]
critic(discriminator(x), discriminator(fake)), generator(discriminator(fake))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sae.base import draws
from sae.book.generate.base import CRITIC, LAYERS, seeded
from sae.config import ConfigError
from sae.models.stems import Stem


class Discriminator(nn.Module):
    """D(x) = σ(w · stem(x) + b); it gives the logit. What the stem gives are its features.

    Raises:
        ConfigError: a stem with several rows a sample.
    """

    def __init__(self, stem: Stem, seed: int) -> None:
        super().__init__()
        if stem.positions != 1:
            raise ConfigError(f"stem: expected one row a sample, got {stem.positions}")
        self.stem = stem
        stem.initialise(draws.generator(seed, CRITIC))
        self.out = seeded(lambda: nn.Linear(stem.dim, 1), seed, CRITIC, LAYERS)

    def features(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> features [N, d]."""
        return self.stem(x)

    def judge(self, features: Tensor) -> Tensor:
        """Features [N, d] -> logits of being real [N]."""
        return self.out(features).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> logits of being real [N]."""
        return self.judge(self.features(x))


class Game(NamedTuple):
    """What the two sides minimise, as functions of logits [N]; means over the batch."""

    critic: Callable[[Tensor, Tensor], Tensor]
    """Of the logits of real and of generated samples."""
    generator: Callable[[Tensor], Tensor]
    """Of the logits of generated samples."""


# -log D(x) - log(1 - D(G(z))), and -log D(G(z)) (Goodfellow et al. 2014, section 3)
NON_SATURATING = Game(
    critic=lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
    generator=lambda fake: softplus(-fake).mean(),
)
# (Lim & Ye 2017, arXiv:1705.02894, eq. 13)
HINGE = Game(
    critic=lambda real, fake: torch.relu(1 - real).mean() + torch.relu(1 + fake).mean(),
    generator=lambda fake: -fake.mean(),
)
GAMES = {"non_saturating": NON_SATURATING, "hinge": HINGE}
