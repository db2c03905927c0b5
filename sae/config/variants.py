"""Settings of autoencoders, each beside the variants that read it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sae.config.fields import check


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Which autoencoder."""

    variant: str = "topk"
    """Kind of sparse autoencoder."""
    width: int = 4608
    """Number of latents."""
    k: int = 32
    """Latents active a token; on average for penalised variants, unless --l0-target or --sparsity says otherwise."""
    base: str | None = None
    """For transcoders and crosscoders: whose code and loss they take (transcoder: topk, the others: batchtopk)."""
    l0_target: float | None = None
    """Penalised variants: the L0 that a controller moves the penalty's weight to; by default --k."""
    sparsity: float | None = None
    """Penalised variants: the penalty's weight, fixed; turns the controller off."""
    sparsity_warmup: float = 0.3
    """Share of the steps over which the aim falls from the L0 of the first step, or a fixed weight rises from zero."""
    penalty: Literal["l1", "tanh"] = "l1"
    """Penalty of --variant relu."""
    recipe: Literal["deepmind", "anthropic", "target"] = "deepmind"
    """How --variant jumprelu is trained: a penalty on L0, on tanh, or on the distance of L0 from its target."""
    bandwidth: float | None = None
    """Width of the window in which thresholds learn; by default 0.01 sqrt(d), or 2 (recipe anthropic)."""
    groups: int = 5
    """Nested dictionaries of --variant matryoshka, each half the next."""
    contrast: float = 1.0
    """Weight of the contrast between neighbouring tokens in --variant temporal."""
    k_start: int | None = None
    """Variants with k: latents active a token at the start, from which k falls to --k."""
    k_anneal: float = 0.2
    """Share of the steps over which k falls from --k-start."""
    normalise: Literal["scale", "centre", "layer_norm", "whiten", "none"] = "scale"
    """What is done to activations before encoding, and undone after; folded into the saved weights where it can be."""
    revival: Literal["auto", "auxk", "resample", "pre_activation", "none"] = "auto"
    """How dead latents are brought back; auto is what the variant likes."""
    pre_activation_weight: float = 3e-6
    """Weight of the loss of --revival pre_activation."""
    auxk_weight: float = 1 / 32
    """Weight of the loss that revives dead latents; 0 turns it off."""
    auxk: int | None = None
    """Dead latents used by that loss; by default half the model's width."""
    dead_after: int | None = None
    """Tokens without firing after which a latent counts as dead; by default 10M, or a tenth of a shorter run."""

    @property
    def keeps_k(self) -> bool:
        """Whether --k says anything."""
        return True

    def __post_init__(self) -> None:
        check(self.width >= 1, "width", self.width, "at least 1 latent")
        check(self.k >= 1, "k", self.k, "at least 1")
        fits = self.k <= self.width or not self.keeps_k
        check(fits, "k", self.k, f"at most the number of latents, --width {self.width}")
        check(self.l0_target is None or 0 < self.l0_target <= self.width, "l0_target", self.l0_target, "1 to --width")
        check(self.sparsity is None or self.sparsity > 0, "sparsity", self.sparsity, "more than 0")
        check(0 <= self.sparsity_warmup < 1, "sparsity_warmup", self.sparsity_warmup, "a share of the steps, below 1")
        check(self.bandwidth is None or self.bandwidth > 0, "bandwidth", self.bandwidth, "more than 0")
        check(1 <= self.groups <= 20, "groups", self.groups, "1 to 20")
        check(self.contrast >= 0, "contrast", self.contrast, "0 or more")
        check(
            self.k_start is None or self.k <= self.k_start <= self.width,
            "k_start", self.k_start, f"--k {self.k} to --width {self.width}",
        )  # fmt: skip
        check(0 < self.k_anneal <= 1, "k_anneal", self.k_anneal, "a share of the steps")
        check(self.pre_activation_weight > 0, "pre_activation_weight", self.pre_activation_weight, "more than 0")
        check(self.auxk_weight >= 0, "auxk_weight", self.auxk_weight, "0 or more")
        check(self.auxk is None or self.auxk >= 1, "auxk", self.auxk, "at least 1")
        check(self.dead_after is None or self.dead_after >= 1, "dead_after", self.dead_after, "at least 1 token")


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
