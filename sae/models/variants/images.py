"""Variants for images that language models do not have: dense, denoising, rate-sparse, variational, quantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sae.config import VisionConfig
from sae.modules import divergences, likelihoods  # noqa: F401  makes the terms known
from sae.modules.codes import Code, Gaussian, Identity, Quantised, Sigmoid
from sae.modules.losses import Term


@dataclass(frozen=True, kw_only=True)
class ImageVariant:
    """One row of the table: what `auto` means in its settings, and what it adds to the score of reconstructions."""

    code: Callable[[VisionConfig], Code]
    terms: Callable[[VisionConfig, int, int], Sequence[Term]] = lambda config, pixels, samples: ()
    """Terms beside the reconstruction's, for images of so many numbers, so many of them in the data set."""
    stem: str = "mlp"
    head: str = "mlp"
    output: str = "sigmoid"
    likelihood: str = "squared_error"
    corruption: str = "none"
    unit_atoms: bool = False
    beta: Callable[[int], float] = lambda pixels: 1.0
    """Weight of the divergence unless --beta says otherwise, for images of so many numbers."""
    reads: tuple[str, ...] = ()
    """Fields of `VisionConfig` that `code` and `terms` read and other variants do not."""
    lr: float = 1e-3
    """Adam's peak rate unless --lr says otherwise."""


def weight(config: VisionConfig, pixels: int) -> float:
    """Weight of the divergence from the prior."""
    beta = config.beta or 0.0
    return beta if config.beta_per == "nats" else beta * pixels / config.width


DIVERGENCE = ("beta", "beta_per", "kl_warmup", "free_bits")
"""What a weighted divergence reads."""
CODEBOOK = ("code_dim", "commitment", "momentum", "resets")
"""What a codebook reads."""


def share_for(pixels: int) -> float:
    """Share of a usual weight that images of so many numbers bear: all of it from 28 x 28 on, less in proportion below.

    log p(x|z) is a sum over pixels and the divergence is not, so what compares across sizes is beta over pixels
    (Higgins et al. 2017 normalise it so). On 8 x 8 digits a beta of 4 leaves the mean image, and 1.5 an FVU of .54.
    """
    return min(1.0, pixels / 784)


def divergence(config: VisionConfig, pixels: int, samples: int) -> list[Term]:
    """β KL(q(z|x) || p(z)) (Higgins et al. 2017, eq. 4)."""
    return [Term("gaussian_kl", weight(config, pixels), {"free_bits": config.free_bits}, config.kl_warmup)]


# on mnist5k a rate of 3e-3 left less held-out error than 1e-3 and 2e-3 after 40 to 60 epochs
AE = ImageVariant(code=lambda config: Identity(), lr=3e-3)

# two matrices and nothing else: the best it can do is PCA (Baldi & Hornik 1989)
LINEAR = ImageVariant(code=lambda config: Identity(), stem="none", head="none", output="linear", unit_atoms=True)

DENOISING = ImageVariant(code=lambda config: Identity(), corruption="gaussian", lr=3e-3)

KL_SPARSE = ImageVariant(
    code=lambda config: Sigmoid(),
    terms=lambda config, pixels, samples: [Term("rate_kl", config.rate_weight or 0.0, {"rate": config.rate})],
    reads=("rate", "rate_weight", "rate_momentum"),
)

# on mnist5k and digits 2e-3 left a better held-out bound than 1e-3
VAE = ImageVariant(code=lambda config: Gaussian(), terms=divergence, likelihood="bernoulli", reads=DIVERGENCE, lr=2e-3)

BETA_VAE = dataclasses.replace(VAE, beta=lambda pixels: 4.0 * share_for(pixels))

CAPACITY_VAE = ImageVariant(
    code=lambda config: Gaussian(),
    terms=lambda config, pixels, samples: [Term("capacity", config.gamma or 0.0, {"nats": config.capacity})],
    likelihood="bernoulli",
    reads=("capacity", "gamma"),
    lr=2e-3,
)

# KL + (β - 1) TC: the parts of eq. 2 with weights 1, β, 1 (Chen et al. 2018, eq. 4)
BETA_TCVAE = ImageVariant(
    code=lambda config: Gaussian(),
    terms=lambda config, pixels, samples: [
        Term("gaussian_kl", 1.0, {"free_bits": config.free_bits}, config.kl_warmup),
        Term("total_correlation", weight(config, pixels) - 1.0, {"samples": samples}, config.kl_warmup),
    ],
    likelihood="bernoulli",
    reads=DIVERGENCE,
    beta=lambda pixels: 1.0 + 5.0 * share_for(pixels),
    lr=2e-3,
)


def codebook_terms(config: VisionConfig, pixels: int, samples: int) -> list[Term]:
    """Commitment, and the codebook's own error where it learns by gradient."""
    own = [] if config.momentum else [Term("codebook")]
    return [Term("commitment", config.commitment), *own]


VQ_VAE = ImageVariant(
    code=lambda config: Quantised(config.width, config.code_dim, config.momentum, config.resets),
    terms=codebook_terms,
    reads=CODEBOOK,
    stem="convolutional",
    head="convolutional",
    lr=2e-3,
)

VQ_VAE_2 = ImageVariant(
    code=lambda config: Quantised(config.width, config.code_dim, config.momentum, config.resets),
    terms=codebook_terms,
    reads=CODEBOOK,
    stem="two_level",
    head="two_level",
    lr=2e-3,
)
