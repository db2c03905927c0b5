"""The models of every tier, and how long they are trained. All models of a tier see the same rows.

pixel_members(quick=False)[0].vision
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sae.config import SAEConfig, VisionConfig

PLANTED = "planted?size=12&atoms=64&l0=4&count=5000"
PLANTED_WIDTH = 96  # latents: half as many again as there are atoms
PLANTED_K = 4
SMALLER = {"dsprites": "dsprites?size=32", "shapes3d": "shapes3d?size=32"}
"""Sets drawn smaller if no size is named: the comparison's trainings are short."""


class Scale(NamedTuple):
    """Amounts of data and lengths of training."""

    images: int
    """Training images, at most."""
    heldout: int
    """Held-out images, at most."""
    passes: int
    """Images seen in a training of the pixel tier, all epochs together, at most."""
    numbers: int
    """Pixels seen in such a training, at most: larger images are seen less often."""
    planted: int
    """Training images of the planted tier."""
    planted_passes: int
    tokens: int
    """Rows of the language model's activations, held-out ones included."""
    token_epochs: int

    def epochs(self, count: int, dim: int) -> int:
        """Passes over `count` rows of `dim` numbers."""
        return max(2, round(min(self.passes, self.numbers / dim) / count))

    @property
    def planted_epochs(self) -> int:
        """Passes over the planted images."""
        return max(2, round(self.planted_passes / self.planted))


FULL = Scale(
    images=4000,
    heldout=2000,
    passes=160_000,
    numbers=80_000_000,
    planted=4000,
    planted_passes=120_000,
    tokens=40_000,
    token_epochs=3,
)
QUICK = Scale(
    images=600,
    heldout=300,
    passes=12_000,
    numbers=10_000_000,
    planted=600,
    planted_passes=9_000,
    tokens=6_000,
    token_epochs=1,
)


class Member(NamedTuple):
    """One row of the table, before its seeds."""

    name: str
    """Of its run folders, and in the table."""
    family: str
    vision: VisionConfig


class RowMember(NamedTuple):
    """One sparse autoencoder on rows of activations."""

    name: str
    family: str
    sae: SAEConfig


def pixel_members(shape: Sequence[int], *, quick: bool) -> list[Member]:
    """Every family on pixels of the shape [C, H, W]; several widths, k and beta of most."""
    # the likelihood of the variational ones; squared error behind a sigmoid leaves sparse images black
    nats: dict[str, Any] = {"likelihood": "bernoulli"}
    if quick:
        return [
            _member("ae", width=16, **nats),
            _member("linear", width=16),
            _member("vae", width=16),
            *(_member("topk", width=64, k=k) for k in (4, 8)),
            _member("relu", width=64, k=8),
        ]
    sparse = ("relu", "p_anneal", "gated", "topk", "batchtopk", "matryoshka", "jumprelu")
    return [
        *(_member("ae", width=width, **nats) for width in (8, 32)),
        *(_member("linear", width=width) for width in (8, 32)),
        _member("denoising", width=32, **nats),
        *(_member("kl_sparse", width=width, **nats) for width in (32, 128)),
        *(_member("vae", width=width) for width in (8, 32)),
        *(_member("beta_vae", width=16, beta=beta) for beta in (0.5, 2.0, 4.0)),
        _member("capacity_vae", width=16, capacity=15.0),
        _member("beta_tcvae", width=16, beta=6.0),
        _member("vqvae", width=32, code_dim=16, channels=narrow_channels(shape), **nats),
        *(_member("topk", width=width, k=k) for width in (64, 128) for k in (4, 8, 16)),
        *(_member(variant, width=256, k=k) for variant in sparse for k in (8, 16)),
        _member("topk", width=256, k=4),
        _member("matching_pursuit", width=256, k=8),
    ]


def planted_members(*, quick: bool) -> list[Member]:
    """Sparse and image autoencoders of one width on sums of known atoms, whose pixels have both signs."""
    real: dict[str, Any] = {"output": "linear", "hidden": (128,)}
    normal: dict[str, Any] = {**real, "likelihood": "gaussian", "variance": 0.005}
    sparse = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matching_pursuit")
    sized = {"width": PLANTED_WIDTH}
    if quick:
        return [_member("topk", **sized, k=PLANTED_K), _member("ae", **sized, **real)]
    return [
        *(_member(variant, **sized, k=PLANTED_K) for variant in sparse),
        _member("ae", **sized, **real),
        _member("vae", **sized, **normal),
        _member("beta_vae", **sized, beta=4.0, **normal),
        _member("kl_sparse", **sized, **real),
        _member("linear", **sized),
    ]


def row_members(dim: int, *, k: int, quick: bool) -> list[RowMember]:
    """Sparse autoencoders of twice the width of activations [n, dim]."""
    variants = ("topk",) if quick else ("topk", "batchtopk", "jumprelu")
    width = 2 * dim
    return [RowMember(f"{v}-w{width}-k{k}", v, SAEConfig(variant=v, width=width, k=k)) for v in variants]


def narrow_channels(shape: Sequence[int]) -> tuple[int, ...]:
    """Channels of a VQ-VAE's convolutions: 32 in the last, half as many in each layer before; the map is about 4 x 4.

    The usual 32, 64, 128 would take twenty times as long as any other model here.
    """
    layers, side = 0, min(shape[1:])
    while side % 2 == 0 and side > 4:
        layers, side = layers + 1, side // 2
    return tuple(32 >> (layers - 1 - layer) for layer in range(layers))


def _member(variant: str, *, width: int, k: int | None = None, **more: Any) -> Member:
    name = f"{variant}-w{width}" + ("" if k is None else f"-k{k}")
    if variant == "beta_vae" and "beta" in more:
        name += f"-beta{more['beta']:g}"
    more |= {} if k is None else {"k": k}
    return Member(name, variant, VisionConfig(variant=variant, width=width, **more))
