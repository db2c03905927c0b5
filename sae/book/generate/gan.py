"""A generative adversarial network of a head and a stem (Goodfellow et al. 2014).

gan = train_gan(x, ConvolutionalStem(shape, (16, 32)), ConvolutionalHead(shape, (16, 32), True, True), GANConfig())
gan.sample(64, torch.Generator().manual_seed(0))
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sae.base import draws
from sae.book.generate.base import CRITIC, LAYERS, MAKER, Sampler, StepsConfig, count, minibatches, seeded
from sae.book.generate.latent import VAESampler, decoder_parameters
from sae.config import ConfigError, check
from sae.models.autoencoder import Autoencoder
from sae.models.heads import Head
from sae.models.stems import Stem
from sae.modules.codes import Gaussian
from sae.modules.divergences import kl_per_latent
from sae.modules.likelihoods import gaussian_nll

BETAS = (0.5, 0.999)
"""Adam's; the first as Radford et al. 2016, section 3."""


@dataclass(frozen=True, kw_only=True)
class GANConfig(StepsConfig):
    """How a GAN is trained."""

    latents: int = 32
    """Width of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latents >= 1, "latents", self.latents, "at least 1")


class Discriminator(nn.Module):
    """D(x) = σ(w · stem(x) + b), of which it returns the logit; the stem's outputs are its features.

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


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -log D(x) - log(1 - D(G(z))), from logits of real and of generated samples [N]."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Mean of -log D(G(z)), from logits of generated samples [N] (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


class Generator(nn.Module):
    """x = head(W z + b), z ~ N(0, 1); pixels in [0, 1] if the head squashes.

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


@dataclass(frozen=True, eq=False, kw_only=True)
class GAN(Sampler):
    """A trained GAN; the discriminator plays no part in sampling."""

    network: Generator

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return self.network(torch.randn(n, self.network.latents, generator=generator))


def train_gan(x: Tensor, stem: Stem, head: Head, config: GANConfig, *, seed: int) -> GAN:
    """Train on x [N, D], the two networks in turn, one step each.

    Training that has collapsed is not stopped early: the samples show it.

    Args:
        x: pixels, float32.
        stem: the discriminator's, initialised here.
        head: the generator's, initialised here.
        config: the settings.
        seed: of every random draw.

    Raises:
        ConfigError: fewer samples than a batch.
    """
    network, critic = Generator(config.latents, head, seed), Discriminator(stem, seed)
    making = torch.optim.Adam(network.parameters(), lr=config.lr, betas=BETAS)
    judging = torch.optim.Adam(critic.parameters(), lr=config.lr, betas=BETAS)
    begun = time.perf_counter()
    for real, noise in minibatches(x, config, seed=seed):
        fake = network(torch.randn(len(real), config.latents, generator=noise))
        loss = discriminator_loss(*critic(torch.cat([real, fake.detach()])).chunk(2))
        judging.zero_grad()
        loss.backward()
        judging.step()
        loss = generator_loss(critic(fake))
        making.zero_grad()
        loss.backward()
        making.step()
    return GAN(network=network, seconds=time.perf_counter() - begun, parameters=count(network))


@dataclass(frozen=True, kw_only=True)
class VAEGANConfig(StepsConfig):
    """How a VAE-GAN is trained."""

    variance: float = 0.05
    """σ² of the Gaussian by which features are compared: the smaller, the more a reconstruction counts over the KL."""
    gamma: float = 0.02
    """Weight of the features' likelihood against the adversarial loss in the decoder's loss (the paper's γ)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.variance > 0, "variance", self.variance, "more than 0")
        check(self.gamma >= 0, "gamma", self.gamma, "0 or more")


def train_vaegan(x: Tensor, model: Autoencoder, stem: Stem, config: VAEGANConfig, *, seed: int) -> VAESampler:
    """Train on x [N, D]: the discriminator, then encoder and decoder, one step each (the paper's algorithm 1).

    The encoder minimises the KL and the error of features, the decoder γ times that error and the adversarial loss; the
    discriminator learns to tell x from reconstructions and from decoded draws of the prior. The adversarial loss's
    gradient stops at the code, and that of the features' error at the discriminator.

    Args:
        x: pixels, float32.
        model: a variational autoencoder, initialised here.
        stem: the discriminator's, initialised here; its outputs are the features that are compared.
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
    in_decoder = {id(p) for p in decoder}
    encoder = [p for p in model.parameters() if id(p) not in in_decoder]
    coding = torch.optim.Adam([*encoder, *decoder], lr=config.lr, betas=BETAS)
    judging = torch.optim.Adam(critic.parameters(), lr=config.lr, betas=BETAS)
    begun = time.perf_counter()
    for real, noise in minibatches(x, config, seed=seed):
        made = _make(model, model.code, real, noise)
        both = torch.cat([made.reconstruction, made.drawn])
        logits = critic(torch.cat([real, both.detach()]))
        loss = discriminator_loss(logits[: len(real)], logits[len(real) :])
        judging.zero_grad()
        loss.backward()
        judging.step()

        features = critic.features(torch.cat([real, both])).split(len(real))
        error = (features[0].detach() - features[1]).square().sum(1)
        nll = gaussian_nll(error, features[0].shape[1], config.variance).mean()
        adversarial = generator_loss(critic.judge(torch.cat(features[1:])))
        coding.zero_grad()
        (made.kl + nll).backward(inputs=encoder, retain_graph=True)
        (config.gamma * nll + adversarial).backward(inputs=decoder)
        coding.step()
    return VAESampler(model=model, seconds=time.perf_counter() - begun, parameters=decoder_parameters(model))


class _Made(NamedTuple):
    """Decoded images [N, D] of one step, and the batch's KL."""

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
