"""Samples through the decoder of a trained autoencoder: from its prior, or from diffusion among its latents.

run = open_image_run("runs/vae")
from_prior(run).sample(64, generator)
train_latent_diffusion(run, DiffusionConfig(), seed=0).sample(64, generator)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.book.generate.base import Sampler, count
from sae.book.generate.denoisers import MLPDenoiser
from sae.book.generate.diffusion import Diffusion, DiffusionConfig, train_diffusion
from sae.config import ConfigError
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Gaussian
from sae.runs.images import ImageRun, decode_dense, dense_codes


@dataclass(frozen=True, eq=False, kw_only=True)
class VAESampler(Sampler):
    """A VAE: z ~ N(0, 1), decoded (Kingma & Welling 2014). Samples are means of pixels, not draws of them."""

    model: Autoencoder
    encodes: bool = True

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return decode_dense(self.model, torch.randn(n, self.model.width, generator=generator))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Samples [N, D], encoded and decoded at the means of their codes."""
        return decode_dense(self.model, dense_codes(self.model, x))


def from_prior(run: ImageRun) -> VAESampler:
    """A run's VAE as a generative model.

    Raises:
        ConfigError: the run has no Gaussian code, so no prior to draw from.
    """
    if not isinstance(run.model.code, Gaussian):
        raise ConfigError(f"{run.folder}: --variant {run.vision.variant} has no prior; expected a VAE")
    return VAESampler(model=run.model, seconds=seconds_of(run), parameters=decoder_parameters(run.model))


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentDiffusion(Sampler):
    """Diffusion among the standardised means of a frozen autoencoder, decoded by it (Rombach et al. 2022)."""

    model: Autoencoder
    diffusion: Diffusion
    encodes: bool = True

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return decode_dense(self.model, self.diffusion.sample(n, generator))


def train_latent_diffusion(run: ImageRun, config: DiffusionConfig, *, seed: int, hidden: int = 256) -> LatentDiffusion:
    """Train diffusion on the means of the run's training images; `hidden` is the width of its network.

    Raises:
        ConfigError: fewer images than a batch.
    """
    codes = dense_codes(run.model, run.images("train").all())
    width = codes.shape[1]
    diffusion = train_diffusion(codes, lambda: MLPDenoiser(width, hidden), config, seed=seed, pixels=False)
    return LatentDiffusion(
        model=run.model,
        diffusion=diffusion,
        seconds=diffusion.seconds + seconds_of(run),
        parameters=diffusion.parameters + decoder_parameters(run.model),
        evaluations=diffusion.evaluations + 1,  # the decoder once
    )


def decoder_parameters(model: Autoencoder) -> int:
    """Numbers in a model's dictionary and head."""
    return count(model.dictionary, *([] if model.head is None else [model.head]))


def seconds_of(run: ImageRun) -> float:
    """Wall time of the run's training in its last process."""
    return run.record["training"]["seconds"]
