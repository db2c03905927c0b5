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

from sae.book.generate.base import StepsConfig, minibatches
from sae.book.generate.gan import BETAS, Discriminator, discriminator_loss, generator_loss
from sae.book.generate.latent import VAESampler, decoder_parameters
from sae.config import ConfigError, check
from sae.models.autoencoder import Autoencoder
from sae.models.stems import Stem
from sae.modules.codes import Gaussian
from sae.modules.divergences import kl_per_latent
from sae.modules.likelihoods import gaussian_nll


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
