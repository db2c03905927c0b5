"""Settings of runs on images: which images, how long, and how a run is evaluated. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sae.config.fields import check
from sae.config.image_variants import VisionConfig
from sae.config.run import OptimConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """The images."""

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

    A data set needs a number of steps, however small it is: a VAE on digits, with 11 steps a pass, has a held-out FVU
    of .53 after 60 passes. The limit on passes keeps a few images from being memorised.
    """
    return min(MOST_EPOCHS, max(1, round(USUAL_STEPS / max(1, images // batch))))


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
