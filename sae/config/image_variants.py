"""Settings of the image autoencoders: a class for each set of variants that share them. Imports no torch.

As in `sae.config.variants`: `IMAGE_SETTINGS` says which class a variant reads, and `VisionConfig` holds all of them
side by side, with those of the sparse variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sae.config.fields import check
from sae.config.variants import SETTINGS, CommonSettings, SAEConfig, names_of


@dataclass(frozen=True, kw_only=True)
class ImageSettings(CommonSettings):
    """Settings of every image autoencoder; what `auto` stands for depends on the variant."""

    variant: str = "ae"
    """Kind of autoencoder."""
    width: int = 64
    """Number of latents; for a codebook, of atoms."""
    normalise: Literal["auto", "scale", "centre", "layer_norm", "whiten", "none"] = "auto"
    """How pixels are normalised before encoding, undone after decoding; none for models with a stem or a head."""
    stem: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """Network between the image and the linear encoder."""
    head: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """Network between the dictionary and the reconstructed image."""
    hidden: tuple[int, ...] = (256,)
    """Hidden widths of an MLP stem; an MLP head has them in reverse."""
    channels: tuple[int, ...] = ()
    """Channels of a convolutional stem's layers, each halving the sides; by default 32, 64, 128, as sides allow."""
    upsampling: bool = True
    """Convolutional heads double a map by nearest neighbours, then convolve; off, by transposed convolutions."""
    output: Literal["auto", "linear", "sigmoid"] = "auto"
    """Whether the head gives pixels (linear) or logits of pixels (sigmoid)."""
    likelihood: Literal["auto", "squared_error", "bernoulli", "gaussian"] = "auto"
    """How a reconstruction is scored: by squared error, or in nats under a Bernoulli or Gaussian for each pixel."""
    variance: float = 0.5
    """Variance of --likelihood gaussian; with 1/2 the score is the squared error plus a constant."""
    corruption: Literal["auto", "none", "gaussian", "masking", "salt_and_pepper"] = "auto"
    """Noise added to the inputs in training; the target is the clean image."""
    corruption_level: float | None = None
    """Strength of the noise: standard deviation, or share of pixels; by default 0.3 (salt_and_pepper: 0.2)."""
    corrupted_only: bool = False
    """Count the error of corrupted pixels only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(all(width >= 1 for width in self.hidden), "hidden", self.hidden, "widths of at least 1")
        check(all(number >= 1 for number in self.channels), "channels", self.channels, "at least 1 each")
        check(self.variance > 0, "variance", self.variance, "more than 0")
        level = self.corruption_level
        check(level is None or level > 0, "corruption_level", level, "more than 0")


@dataclass(frozen=True, kw_only=True)
class RateSettings(ImageSettings):
    """Settings of kl_sparse."""

    rate: float = 0.05
    """Mean value that every latent should have."""
    rate_weight: float | None = None
    """Weight of the divergence from --rate; by default a hundredth of the number of pixels."""
    rate_momentum: float | None = None
    """Decay of a running mean of the latents' values; by default the mean over the batch is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.rate < 1, "rate", self.rate, "between 0 and 1, both excluded")
        check(self.rate_weight is None or self.rate_weight >= 0, "rate_weight", self.rate_weight, "0 or more")
        momentum = self.rate_momentum
        check(momentum is None or 0 <= momentum < 1, "rate_momentum", momentum, "0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings(ImageSettings):
    """Settings of variational autoencoders with a weighted divergence."""

    beta: float | None = None
    """Weight of the divergence from the prior; by default 1 (beta_vae 4, beta_tcvae 6; less below 784 pixels)."""
    beta_per: Literal["nats", "dimension"] = "nats"
    """dimension: --beta is the normalised weight, and beta · pixels / latents is used (Higgins et al. 2017)."""
    kl_warmup: float = 0.0
    """Share of the steps over which that weight rises from zero."""
    free_bits: float = 0.0
    """Nats per latent below which its divergence costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.beta is None or self.beta >= 0, "beta", self.beta, "0 or more")
        check(0 <= self.kl_warmup <= 1, "kl_warmup", self.kl_warmup, "a share of the steps, 0 to 1")
        check(self.free_bits >= 0, "free_bits", self.free_bits, "0 or more nats")

    def ignored(self) -> dict[str, str]:
        """The unit of a weight that is not given."""
        return ({"beta_per": "the unit of --beta, which is missing"} if self.beta is None else {}) | super().ignored()


@dataclass(frozen=True, kw_only=True)
class CapacitySettings(ImageSettings):
    """Settings of capacity_vae."""

    capacity: float = 25.0
    """Nats of divergence that are allowed at the end of training; the allowance rises from zero."""
    gamma: float | None = None
    """Weight of the distance from that allowance; by default 100, or less for images below 784 pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.capacity >= 0, "capacity", self.capacity, "0 or more nats")
        check(self.gamma is None or self.gamma > 0, "gamma", self.gamma, "more than 0")


@dataclass(frozen=True, kw_only=True)
class CodebookSettings(ImageSettings):
    """Settings of vqvae and vqvae2."""

    code_dim: int = 64
    """Width of a codebook's atoms."""
    commitment: float = 0.25
    """Weight of the loss that keeps the encoder's outputs near the atoms they select."""
    momentum: float = 0.99
    """Decay of the codebook's moving averages; with 0 the atoms learn by gradient."""
    resets: bool = True
    """Move atoms that are hardly ever selected to outputs of the encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.code_dim >= 1, "code_dim", self.code_dim, "at least 1")
        check(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "0 to below 1")


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

    k: int = 8
    """Active latents per image; of penalised variants the average, unless --l0-target or --sparsity is given."""

    @classmethod
    def readers(cls) -> dict[str, frozenset[str]]:
        """Variant -> the names of the settings that it reads."""
        return {variant: names_of(own) | names_of(ImageSettings) for variant, own in IMAGE_SETTINGS.items()}
