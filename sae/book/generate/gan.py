"""A generative adversarial network of a head and a stem (Goodfellow et al. 2014).

gan = train_gan(x, ConvolutionalStem(shape, (16, 32)), ConvolutionalHead(shape, (16, 32), True, True), GANConfig())
gan.sample(64, torch.Generator().manual_seed(0))
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae.base import draws
from sae.book.generate.adversarial import GAMES, Discriminator
from sae.book.generate.base import LAYERS, MAKER, count, minibatches, seeded
from sae.config import ConfigError, check, unknown_choice
from sae.models.heads import Head
from sae.models.stems import Stem


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """How a GAN is trained."""

    latents: int = 32
    """Width of the noise."""
    loss: str = "non_saturating"
    """In `sae.book.generate.adversarial.GAMES`."""
    steps: int = 2000
    batch: int = 64
    lr: float = 5e-4
    """Adam's, of both sides."""
    beta1: float = 0.5
    """Adam's decay of the first moment (Radford et al. 2016, section 3)."""

    def __post_init__(self) -> None:
        check(self.latents >= 1, "latents", self.latents, "at least 1")
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(self.lr > 0, "lr", self.lr, "more than 0")
        check(0 <= self.beta1 < 1, "beta1", self.beta1, "0 to below 1")
        if self.loss not in GAMES:
            raise unknown_choice("--loss", self.loss, GAMES)


class Generator(nn.Module):
    """x = head(W z + b), z ~ N(0, 1); pixels in [0, 1] where the head squashes.

    Raises:
        ConfigError: a head that reads several rows a sample.
    """

    def __init__(self, latents: int, head: Head, seed: int) -> None:
        super().__init__()
        if head.positions != 1:
            raise ConfigError(f"head: expected one row a sample, got {head.positions}")
        self.latents, self.head = latents, head
        head.initialise(draws.generator(seed, MAKER))
        self.linear = seeded(lambda: nn.Linear(latents, head.dim), seed, MAKER, LAYERS)

    def forward(self, z: Tensor) -> Tensor:
        """Noise [N, latents] -> samples [N, D]."""
        outputs = self.head(self.linear(z))
        return torch.sigmoid(outputs) if self.head.squash else outputs


@dataclass(frozen=True, eq=False)
class GAN:
    """A trained GAN; see `sae.book.generate.base.Sampler`."""

    generator: Generator
    discriminator: Discriminator
    seconds: float
    evaluations: int = 1
    encodes: bool = False

    @property
    def parameters(self) -> int:
        """See `Sampler`; the discriminator has no part in it."""
        return count(self.generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`."""
        return self.generator(torch.randn(n, self.generator.latents, generator=generator))


def train_gan(
    x: Tensor,
    stem: Stem,
    head: Head,
    config: GANConfig,
    *,
    seed: int,
) -> GAN:
    """Train on x [N, D], the two sides in turn, a step each.

    A game that is lost for good is not stopped: its samples tell.

    Args:
        x: pixels, float32.
        stem: the discriminator's, initialised here.
        head: the generator's, initialised here.
        config: the settings.
        seed: of every random draw.

    Raises:
        ConfigError: fewer samples than a batch.
    """
    maker, critic = Generator(config.latents, head, seed), Discriminator(stem, seed)
    game, betas = GAMES[config.loss], (config.beta1, 0.999)
    making = torch.optim.Adam(maker.parameters(), lr=config.lr, betas=betas)
    judging = torch.optim.Adam(critic.parameters(), lr=config.lr, betas=betas)
    begun = time.perf_counter()
    for real, noise in minibatches(x, batch=config.batch, steps=config.steps, seed=seed):
        fake = maker(torch.randn(len(real), config.latents, generator=noise))
        judged = critic(torch.cat([real, fake.detach()]))
        loss = game.critic(*judged.chunk(2))
        judging.zero_grad()
        loss.backward()
        judging.step()
        wanted = game.generator(critic(fake))
        making.zero_grad()
        wanted.backward()
        making.step()
    return GAN(maker, critic, time.perf_counter() - begun)
