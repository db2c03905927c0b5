"""VAE-GAN: a VAE whose reconstructions are compared in a discriminator's features (Larsen et al. 2016).

hybrid = train_vaegan(x, recipe_of(VisionConfig(variant="vae"), shape, len(x)).model, stem, VAEGANConfig(), seed=0)
hybrid.sample(64, torch.Generator().manual_seed(0)); hybrid.reconstruct(x)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae.book.generate.adversarial import NON_SATURATING, Discriminator
from sae.book.generate.base import minibatches
from sae.book.generate.latent import decoder_parameters
from sae.config import ConfigError, check
from sae.models.autoencoder import Autoencoder
from sae.models.stems import Stem
from sae.modules.codes import Gaussian
from sae.modules.divergences import kl_per_latent
from sae.modules.likelihoods import gaussian_nll
from sae.runs.images import decode_dense, dense_codes


@dataclass(frozen=True, kw_only=True)
class VAEGANConfig:
    """How a VAE-GAN is trained."""

    variance: float = 0.05
    """σ² of the Gaussian by which features are compared: the smaller, the more a reconstruction counts over the KL."""
    gamma: float = 0.02
    """Weight of the features' likelihood against the game in the decoder's loss (the paper's γ)."""
    steps: int = 2000
    batch: int = 64
    lr: float = 5e-4
    """Adam's, of all three parts."""
    beta1: float = 0.5

    def __post_init__(self) -> None:
        check(self.variance > 0, "variance", self.variance, "more than 0")
        check(self.gamma >= 0, "gamma", self.gamma, "0 or more")
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(self.lr > 0, "lr", self.lr, "more than 0")
        check(0 <= self.beta1 < 1, "beta1", self.beta1, "0 to below 1")


@dataclass(frozen=True, eq=False)
class VAEGAN:
    """A trained VAE-GAN; see `sae.book.generate.base.Sampler`."""

    model: Autoencoder
    discriminator: Discriminator
    seconds: float
    evaluations: int = 1
    encodes: bool = True

    @property
    def parameters(self) -> int:
        """See `Sampler`."""
        return decoder_parameters(self.model)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`; z ~ N(0, 1)."""
        return decode_dense(self.model, torch.randn(n, self.model.width, generator=generator))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Samples [N, D] through the means of their codes and back."""
        return decode_dense(self.model, dense_codes(self.model, x))


def train_vaegan(
    x: Tensor,
    model: Autoencoder,
    stem: Stem,
    config: VAEGANConfig,
    *,
    seed: int,
) -> VAEGAN:
    """Train on x [N, D]: the discriminator, then encoder and decoder, a step each (the paper's algorithm 1).

    The encoder minimises KL + features, the decoder γ features + game, the discriminator tells x from reconstructions
    and from decoded draws of the prior. No part sees another's loss: the game's gradient stops at the code, and the
    features' at the discriminator.

    Args:
        x: pixels, float32.
        model: a variational autoencoder, initialised here.
        stem: the discriminator's, initialised here; its output are the features that are compared.
        config: the settings.
        seed: of every random draw.

    Raises:
        ConfigError: another code than a Gaussian one, or fewer samples than a batch.
    """
    if not isinstance(model.code, Gaussian):
        raise ConfigError(f"model: expected a Gaussian code (--variant vae), got {model.code.name!r}")
    model.initialise(torch.Generator().manual_seed(seed))
    critic = Discriminator(stem, seed)
    decoder = [*model.dictionary.parameters(), *([] if model.head is None else model.head.parameters())]
    inside = {id(p) for p in decoder}
    encoder = [p for p in model.parameters() if id(p) not in inside]
    betas = (config.beta1, 0.999)
    coding = torch.optim.Adam([*encoder, *decoder], lr=config.lr, betas=betas)
    judging = torch.optim.Adam(critic.parameters(), lr=config.lr, betas=betas)
    begun = time.perf_counter()
    for real, noise in minibatches(x, batch=config.batch, steps=config.steps, seed=seed):
        made = _make(model, model.code, real, noise)
        both = torch.cat([made.reconstruction, made.drawn])
        judged = critic(torch.cat([real, both.detach()]))
        lost = NON_SATURATING.critic(judged[: len(real)], judged[len(real) :])
        judging.zero_grad()
        lost.backward()
        judging.step()

        features = critic.features(torch.cat([real, both])).split(len(real))
        error = (features[0].detach() - features[1]).square().sum(1)
        unlike = gaussian_nll(error, features[0].shape[1], config.variance).mean()
        game = NON_SATURATING.generator(critic.judge(torch.cat(features[1:])))
        coding.zero_grad()
        (made.kl + unlike).backward(inputs=encoder, retain_graph=True)
        (config.gamma * unlike + game).backward(inputs=decoder)
        coding.step()
    return VAEGAN(model, critic, time.perf_counter() - begun)


class _Made(NamedTuple):
    """What a step's batch becomes."""

    reconstruction: Tensor
    drawn: Tensor
    """Decoded draws of the prior."""
    kl: Tensor


def _make(model: Autoencoder, code: Gaussian, x: Tensor, generator: torch.Generator) -> _Made:
    listed = model.select(model.embed(x))
    z = code.sample(listed, generator).values
    prior = torch.randn(z.shape, generator=generator)
    decoded = model.dictionary.decode_dense(torch.cat([z, prior]))
    reconstruction, drawn = model.show(decoded).chunk(2)
    return _Made(reconstruction, drawn, kl_per_latent(*code.moments(listed)).sum(1).mean())
