"""Settings of image autoencoders: what `sae image` adds to the settings of language ones. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sae.config.fields import check
from sae.config.text import OptimConfig, RunConfig, SAEConfig


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """Which images."""

    data: str
    """digits, mnist5k, dsprites, shapes3d, planted, an image folder, or a hub id (`name[:config]`)."""
    heldout: float = 0.2
    """Share of the images set aside for evaluation."""
    limit: int | None = None
    """Take at most this many training images, drawn with the split's seed."""
    split_seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        check(0 < self.heldout < 1, "heldout", self.heldout, "a share between 0 and 1, both excluded")
        check(self.limit is None or self.limit >= 2, "limit", self.limit, "at least 2")
        check(self.split_seed >= 0, "split_seed", self.split_seed, "0 or more")


USUAL_STEPS, MOST_EPOCHS = 6_000, 1_000


def usual_epochs(images: int, batch: int) -> int:
    """Passes over `images` training images, `batch` a step, where no number of epochs is given.

    What a set needs is steps: a VAE on digits, 11 steps a pass, leaves a held-out FVU of .53 after 60 passes. Passes
    are limited, lest a few images are learned by heart.
    """
    return min(MOST_EPOCHS, max(1, round(USUAL_STEPS / max(1, images // batch))))


SPARSE = ("relu", "p_anneal", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "matching_pursuit")
"""Variants of language models that read pixels as they are."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig(SAEConfig):
    """Which image autoencoder. Codes and penalties are those of `SAEConfig`; `auto` is what the variant likes."""

    variant: str = "ae"
    """Kind of autoencoder."""
    width: int = 64
    """Number of latents (of atoms, for a codebook)."""
    k: int = 8
    """Latents active an image, for variants that keep k, and on average for penalised ones."""
    normalise: Literal["auto", "scale", "centre", "layer_norm", "whiten", "none"] = "auto"
    """What is done to pixels before encoding and undone after; only for models without stem and head."""
    stem: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """What embeds images before the linear encoder."""
    head: Literal["auto", "none", "mlp", "convolutional", "two_level"] = "auto"
    """What turns the dictionary's output into an image."""
    hidden: tuple[int, ...] = (256,)
    """Hidden widths of an MLP stem; its head has them in reverse."""
    channels: tuple[int, ...] = ()
    """Channels of a convolutional stem's layers, each halving the sides; by default 32, 64, 128, as sides allow."""
    upsampling: bool = True
    """Convolutional heads: nearest-neighbour doubling and a convolution; off, transposed convolutions."""
    output: Literal["auto", "linear", "sigmoid"] = "auto"
    """Whether the head's outputs are pixels, or logits of pixels."""
    likelihood: Literal["auto", "squared_error", "bernoulli", "gaussian"] = "auto"
    """How reconstructions are scored: squared error, or nats under a Bernoulli or Gaussian of each pixel."""
    variance: float = 0.5
    """Variance of the Gaussian likelihood; 1/2 makes it the squared error plus a constant."""
    beta: float | None = None
    """Weight of the divergence from the prior; by default 1 (beta_vae 4, beta_tcvae 6; less below 784 pixels)."""
    beta_per: Literal["nats", "dimension"] = "nats"
    """dimension: --beta is the normalised one, weight = beta · pixels / latents (Higgins et al. 2017)."""
    kl_warmup: float = 0.0
    """Share of the steps over which that weight rises from zero."""
    free_bits: float = 0.0
    """Nats a latent below which its divergence costs nothing."""
    capacity: float = 25.0
    """Nats of the capacity that --variant capacity_vae ends at."""
    gamma: float | None = None
    """Weight of the distance from that capacity; by default 100, with fewer than 784 pixels less."""
    rate: float = 0.05
    """Mean value that --variant kl_sparse holds every latent to."""
    rate_weight: float | None = None
    """Weight of the divergence from that rate; by default a hundredth of the number of pixels."""
    rate_momentum: float | None = None
    """Decay of a running mean of the rates; by default the batch's own mean is used."""
    corruption: Literal["auto", "none", "gaussian", "masking", "salt_and_pepper"] = "auto"
    """What is done to training inputs, the clean ones staying the target."""
    corruption_level: float | None = None
    """Its strength: standard deviation, or share of pixels; by default 0.3, 0.3 and 0.2."""
    corrupted_only: bool = False
    """Count the error where pixels were corrupted, and nowhere else."""
    code_dim: int = 64
    """Width of a codebook's atoms."""
    commitment: float = 0.25
    """Weight that keeps the encoder near the atoms it chooses."""
    momentum: float = 0.99
    """Decay of a codebook's moving averages; 0 lets its atoms learn by gradient."""
    resets: bool = True
    """Put atoms that hardly any place of an image chooses on places of the batch."""

    @property
    def keeps_k(self) -> bool:
        """See `SAEConfig`."""
        return self.variant in SPARSE

    def __post_init__(self) -> None:
        super().__post_init__()
        check(all(width >= 1 for width in self.hidden), "hidden", self.hidden, "widths of at least 1")
        check(all(number >= 1 for number in self.channels), "channels", self.channels, "at least 1 each")
        check(self.variance > 0, "variance", self.variance, "more than 0")
        check(self.beta is None or self.beta >= 0, "beta", self.beta, "0 or more")
        check(0 <= self.kl_warmup <= 1, "kl_warmup", self.kl_warmup, "a share of the steps, 0 to 1")
        check(self.free_bits >= 0, "free_bits", self.free_bits, "0 or more nats")
        check(self.capacity >= 0, "capacity", self.capacity, "0 or more nats")
        check(self.gamma is None or self.gamma > 0, "gamma", self.gamma, "more than 0")
        check(0 < self.rate < 1, "rate", self.rate, "between 0 and 1, both excluded")
        check(self.rate_weight is None or self.rate_weight >= 0, "rate_weight", self.rate_weight, "0 or more")
        momentum = self.rate_momentum
        check(momentum is None or 0 <= momentum < 1, "rate_momentum", momentum, "0 to below 1")
        level = self.corruption_level
        check(level is None or level > 0, "corruption_level", level, "more than 0")
        check(self.code_dim >= 1, "code_dim", self.code_dim, "at least 1")
        check(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ImageTrainConfig(RunConfig):
    """One training run on images."""

    images: ImageDataConfig
    vision: VisionConfig = field(default_factory=VisionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int | None = None
    """Passes over the training images; by default as many as make about 6,000 steps, at least one, at most 1,000."""
    only_label: str | None = None
    """Train on the images of these labels alone (with commas), or, with a `!` in front, on all others."""
    checkpoint_every: int = 200_000
    """Training images between two checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ImageEvalConfig:
    """One evaluation of a saved image autoencoder on held-out images."""

    images: int = 4_000
    """Held-out images (fewer if there are fewer)."""
    samples: int = 64
    """Draws a held-out image for the importance-weighted bound, for variational models; 0 leaves it out."""
    resamples: int = 1000
    """Bootstrap resamples over images, for the 95% intervals."""
    seed: int = 0
    """Seed of draws and bootstrap."""

    def __post_init__(self) -> None:
        check(self.images >= 1, "images", self.images, "at least 1")
        check(self.samples >= 0, "samples", self.samples, "0 or more")
        check(self.resamples >= 10, "resamples", self.resamples, "at least 10")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
