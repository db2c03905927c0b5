"""Samples through the decoder of a trained autoencoder: from its prior, or from diffusion among its latents.

run = open_image_run("runs/vae")
FromPrior(run).sample(64, generator)
train_latent_diffusion(run, DiffusionConfig(), seed=0).sample(64, generator)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.book.generate.base import count
from sae.book.generate.denoisers import MLPDenoiser
from sae.book.generate.diffusion import Diffusion, DiffusionConfig, train_diffusion
from sae.config import ConfigError
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Gaussian
from sae.runs.images import ImageRun, decode_dense, dense_codes


@dataclass(frozen=True, eq=False)
class FromPrior:
    """A VAE: z ~ N(0, 1), decoded (Kingma & Welling 2014). Samples are means of pixels, not draws of them.

    Raises:
        ConfigError: the run has no Gaussian code, so no prior to draw from.
    """

    run: ImageRun
    evaluations: int = 1
    encodes: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.run.model.code, Gaussian):
            raise ConfigError(f"{self.run.folder}: --variant {self.run.vision.variant} has no prior; expected a VAE")

    @property
    def parameters(self) -> int:
        """See `Sampler`."""
        return decoder_parameters(self.run.model)

    @property
    def seconds(self) -> float:
        """See `Sampler`."""
        return seconds_of(self.run)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`."""
        return decode_dense(self.run.model, torch.randn(n, self.run.model.width, generator=generator))


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """Diffusion among the standardised means of a frozen autoencoder, decoded by it (Rombach et al. 2022)."""

    run: ImageRun
    diffusion: Diffusion
    encodes: bool = True

    @property
    def evaluations(self) -> int:
        """See `Sampler`; the decoder is called once."""
        return self.diffusion.evaluations + 1

    @property
    def parameters(self) -> int:
        """See `Sampler`."""
        return self.diffusion.parameters + decoder_parameters(self.run.model)

    @property
    def seconds(self) -> float:
        """See `Sampler`."""
        return self.diffusion.seconds + seconds_of(self.run)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`."""
        return decode_dense(self.run.model, self.diffusion.sample(n, generator))


def train_latent_diffusion(run: ImageRun, config: DiffusionConfig, *, seed: int, hidden: int = 256) -> LatentDiffusion:
    """Train diffusion on the means of the run's training images; `hidden` is the width of its network.

    Raises:
        ConfigError: fewer images than a batch.
    """
    codes = dense_codes(run.model, run.images("train").all())
    width = codes.shape[1]
    return LatentDiffusion(
        run, train_diffusion(codes, lambda: MLPDenoiser(width, hidden), config, seed=seed, pixels=False)
    )


def decoder_parameters(model: Autoencoder) -> int:
    """Numbers of a model's dictionary and head."""
    return count(model.dictionary, *([] if model.head is None else [model.head]))


def seconds_of(run: ImageRun) -> float:
    """Wall time of the run's training in its last process."""
    return run.record["training"]["seconds"]
