"""Settings of the image autoencoders: a class for each set of variants that share them. Imports no torch.

As in `sae.config.variants`: `IMAGE_SETTINGS` says which class a variant reads, and `VisionConfig` holds all of them
side by side, with those of the sparse variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sae.config.fields import BelowOne, Count, InnerShare, NonNegative, Positive, Share
from sae.config.variants import SETTINGS, CommonSettings, SAEConfig, names_of


@dataclass(frozen=True, kw_only=True)
class ImageSettings(CommonSettings):
    """Settings of every image autoencoder; what `auto` stands for depends on the variant."""

    variant: str = "ae"
    """Kind of autoencoder."""
    width: Count = 64
    """Number of latents; for a codebook, of atoms."""
    normalise: Literal["auto", "scale", "centre", "layer_norm", "whiten", "none"] = "auto"
    """How pixels are normalised before encoding, undone after decoding; none for models with a stem or a head."""
    stem: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """Network between the image and the linear encoder."""
    head: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """Network between the dictionary and the reconstructed image."""
    hidden: tuple[Count, ...] = (256,)
    """Hidden widths of an MLP stem; an MLP head has them in reverse."""
    channels: tuple[Count, ...] = ()
    """Channels of a convolutional stem's layers, each halving the sides; by default 32, 64, 128, as sides allow."""
    upsampling: bool = True
    """Convolutional heads double a map by nearest neighbours, then convolve; off, by transposed convolutions."""
    output: Literal["auto", "linear", "sigmoid"] = "auto"
    """Whether the head gives pixels (linear) or logits of pixels (sigmoid)."""
    likelihood: Literal["auto", "squared_error", "bernoulli", "gaussian"] = "auto"
    """How a reconstruction is scored: by squared error, or in nats under a Bernoulli or Gaussian for each pixel."""
    variance: Positive = 0.5
    """Variance of --likelihood gaussian; with 1/2 the score is the squared error plus a constant."""
    corruption: Literal["auto", "none", "gaussian", "masking", "salt_and_pepper"] = "auto"
    """Noise added to the inputs in training; the target is the clean image."""
    corruption_level: Positive | None = None
    """Strength of the noise: standard deviation, or share of pixels; by default 0.3 (salt_and_pepper: 0.2)."""
    corrupted_only: bool = False
    """Count the error of corrupted pixels only."""


@dataclass(frozen=True, kw_only=True)
class RateSettings(ImageSettings):
    """Settings of kl_sparse."""

    rate: InnerShare = 0.05
    """Mean value that every latent should have."""
    rate_weight: NonNegative | None = None
    """Weight of the divergence from --rate; by default a hundredth of the number of pixels."""
    rate_momentum: BelowOne | None = None
    """BelowOne of a running mean of the latents' values; by default the mean over the batch is used."""


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings(ImageSettings):
    """Settings of variational autoencoders with a weighted divergence."""

    beta: NonNegative | None = None
    """Weight of the divergence from the prior; by default 1 (beta_vae 4, beta_tcvae 6; less below 784 pixels)."""
    beta_per: Literal["nats", "dimension"] = "nats"
    """dimension: --beta is the normalised weight, and beta · pixels / latents is used (Higgins et al. 2017)."""
    kl_warmup: Share = 0.0
    """Share of the steps over which that weight rises from zero."""
    free_bits: NonNegative = 0.0
    """Nats per latent below which its divergence costs nothing."""

    def ignored(self) -> dict[str, str]:
        """The unit of a weight that is not given."""
        return ({"beta_per": "the unit of --beta, which is missing"} if self.beta is None else {}) | super().ignored()


@dataclass(frozen=True, kw_only=True)
class CapacitySettings(ImageSettings):
    """Settings of capacity_vae."""

    capacity: NonNegative = 25.0
    """Nats of divergence that are allowed at the end of training; the allowance rises from zero."""
    gamma: Positive | None = None
    """Weight of the distance from that allowance; by default 100, or less for images below 784 pixels."""


@dataclass(frozen=True, kw_only=True)
class CodebookSettings(ImageSettings):
    """Settings of vqvae and vqvae2."""

    code_dim: Count = 64
    """Width of a codebook's atoms."""
    commitment: NonNegative = 0.25
    """Weight of the loss that keeps the encoder's outputs near the atoms they select."""
    momentum: BelowOne = 0.99
    """BelowOne of the codebook's moving averages; with 0 the atoms learn by gradient."""
    resets: bool = True
    """Move atoms that are hardly ever selected to outputs of the encoder."""


SPARSE = ("relu", "p_anneal", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "matching_pursuit")
"""Sparse variants that also train on images, whose pixels they read as activations."""

IMAGE_SETTINGS: dict[str, type[CommonSettings]] = {
    "ae": ImageSettings,
    "linear": ImageSettings,
    "denoising": ImageSettings,
    "kl_sparse": RateSettings,
    "vae": DivergenceSettings,
    "beta_vae": DivergenceSettings,
    "capacity_vae": CapacitySettings,
    "beta_tcvae": DivergenceSettings,
    "vqvae": CodebookSettings,
    "vqvae2": CodebookSettings,
    **{name: SETTINGS[name] for name in SPARSE},
}
"""Variant -> the settings that it reads beside `ImageSettings`."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig(RateSettings, DivergenceSettings, CapacitySettings, CodebookSettings, SAEConfig):
    """The autoencoder. `sae image train --variant NAME --help` shows the settings of one variant alone."""

    k: Count = 8
    """Active latents per image; of penalised variants the average, unless --l0-target or --sparsity is given."""

    @classmethod
    def readers(cls) -> dict[str, frozenset[str]]:
        """Variant -> the names of the settings that it reads."""
        return {variant: names_of(settings) | names_of(ImageSettings) for variant, settings in IMAGE_SETTINGS.items()}
