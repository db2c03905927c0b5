"""Variants for images alone: dense, denoising, rate-sparse, variational, quantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sae.config.image_variants import (
    CapacitySettings,
    CodebookSettings,
    DivergenceSettings,
    ImageSettings,
    RateSettings,
)
from sae.modules import divergences, likelihoods  # noqa: F401  makes the terms known
from sae.modules.codes import Code, Gaussian, Identity, Quantised, Sigmoid
from sae.modules.losses import Term

S = TypeVar("S", bound=ImageSettings)


@dataclass(frozen=True, kw_only=True)
class ImageVariant(Generic[S]):
    """One row of the table, for the settings S that the variant reads: code, loss, and what `auto` stands for."""

    code: Callable[[S], Code]
    terms: Callable[[S, int, int], Sequence[Term]] = lambda config, pixels, samples: ()
    """Terms beside the reconstruction error, given the number of pixels (times channels) and of training images."""
    stem: str = "mlp"
    head: str = "mlp"
    output: str = "sigmoid"
    likelihood: str = "squared_error"
    corruption: str = "none"
    unit_atoms: bool = False
    beta: Callable[[int], float] = lambda pixels: 1.0
    """Weight of the divergence unless --beta is given, from the number of pixels."""
    lr: float = 1e-3
    """Adam's peak rate, unless --lr is given."""


def weight(config: DivergenceSettings, pixels: int) -> float:
    """Weight of the divergence from the prior."""
    beta = config.beta or 0.0
    return beta if config.beta_per == "nats" else beta * pixels / config.width


def share_for(pixels: int) -> float:
    """Share of a default weight for images of so many pixels: all of it from 28 x 28 on, less in proportion below.

    log p(x|z) is a sum over pixels and the divergence is not, so what compares across sizes is beta over pixels
    (Higgins et al. 2017 normalise it so). On 8 x 8 digits a beta of 4 leaves the mean image, and 1.5 an FVU of .54.
    """
    return min(1.0, pixels / 784)


def divergence(config: DivergenceSettings, pixels: int, samples: int) -> list[Term]:
    """β KL(q(z|x) || p(z)) (Higgins et al. 2017, eq. 4)."""
    return [Term("gaussian_kl", weight(config, pixels), {"free_bits": config.free_bits}, config.kl_warmup)]


# on mnist5k a rate of 3e-3 left less held-out error than 1e-3 and 2e-3 after 40 to 60 epochs
AE: ImageVariant[ImageSettings] = ImageVariant(code=lambda config: Identity(), lr=3e-3)

# two matrices and nothing else: the best it can do is PCA (Baldi & Hornik 1989)
LINEAR: ImageVariant[ImageSettings] = ImageVariant(
    code=lambda config: Identity(), stem="none", head="none", output="linear", unit_atoms=True
)

DENOISING: ImageVariant[ImageSettings] = ImageVariant(code=lambda config: Identity(), corruption="gaussian", lr=3e-3)

KL_SPARSE: ImageVariant[RateSettings] = ImageVariant(
    code=lambda config: Sigmoid(),
    terms=lambda config, pixels, samples: [Term("rate_kl", config.rate_weight or 0.0, {"rate": config.rate})],
)

# on mnist5k and digits 2e-3 left a better held-out bound than 1e-3
VAE: ImageVariant[DivergenceSettings] = ImageVariant(
    code=lambda config: Gaussian(), terms=divergence, likelihood="bernoulli", lr=2e-3
)

BETA_VAE = dataclasses.replace(VAE, beta=lambda pixels: 4.0 * share_for(pixels))

CAPACITY_VAE: ImageVariant[CapacitySettings] = ImageVariant(
    code=lambda config: Gaussian(),
    terms=lambda config, pixels, samples: [Term("capacity", config.gamma or 0.0, {"nats": config.capacity})],
    likelihood="bernoulli",
    lr=2e-3,
)

# KL + (β - 1) TC: the parts of eq. 2 with weights 1, β, 1 (Chen et al. 2018, eq. 4)
BETA_TCVAE: ImageVariant[DivergenceSettings] = ImageVariant(
    code=lambda config: Gaussian(),
    terms=lambda config, pixels, samples: [
        Term("gaussian_kl", 1.0, {"free_bits": config.free_bits}, config.kl_warmup),
        Term("total_correlation", weight(config, pixels) - 1.0, {"samples": samples}, config.kl_warmup),
    ],
    likelihood="bernoulli",
    beta=lambda pixels: 1.0 + 5.0 * share_for(pixels),
    lr=2e-3,
)


def codebook_terms(config: CodebookSettings, pixels: int, samples: int) -> list[Term]:
    """Commitment, and the codebook's own error where it learns by gradient."""
    commitment = Term("commitment", config.commitment)
    return [commitment] if config.momentum else [commitment, Term("codebook")]


VQ_VAE: ImageVariant[CodebookSettings] = ImageVariant(
    code=lambda config: Quantised(config.width, config.code_dim, config.momentum, config.resets),
    terms=codebook_terms,
    stem="convolutional",
    head="convolutional",
    lr=2e-3,
)

VQ_VAE_2: ImageVariant[CodebookSettings] = ImageVariant(
    code=lambda config: Quantised(config.width, config.code_dim, config.momentum, config.resets),
    terms=codebook_terms,
    stem="two_level",
    head="two_level",
    lr=2e-3,
)
