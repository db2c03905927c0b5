"""Settings of runs on images: which images, how long, and how a run is evaluated. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from sae.config.fields import Count, InnerShare, Limit, Limited, Resamples, WholeNumber
from sae.config.image_variants import VisionConfig
from sae.config.run import OptimConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig(Limited):
    """The images."""

    data: str
    """digits, mnist5k, dsprites, shapes3d, planted, an image folder, or a hub id (`name[:config]`)."""
    heldout: InnerShare = 0.2
    """Share of the images set aside for evaluation."""
    limit: Annotated[int, Limit(lambda images: images >= 2, "at least 2")] | None = None
    """Take at most this many training images, drawn with the split's seed."""
    split_seed: WholeNumber = 0
    """Seed of the split."""


USUAL_STEPS, FEWEST_STEPS, MOST_EPOCHS = 6_000, 3_000, 1_000


def usual_epochs(images: int, batch: int) -> int:
    """Passes over `images` training images, `batch` a step, where no number of epochs is given.

    A data set needs a number of steps, however small it is: a VAE on digits, with 11 steps a pass, has a held-out FVU
    of .53 after 60 passes. The limit on passes keeps a few images from being memorised, but leaves 3,000 steps: with
    80 digits in a batch of 80, a VAE's held-out FVU is .49 after 1,000 steps, .40 after 3,000 and after 6,000.
    """
    steps = max(1, images // batch)  # a pass
    return min(max(MOST_EPOCHS, FEWEST_STEPS // steps), max(1, round(USUAL_STEPS / steps)))


@dataclass(frozen=True, kw_only=True)
class ImageTrainConfig(RunConfig):
    """One training run on images."""

    images: ImageDataConfig
    vision: VisionConfig = field(default_factory=VisionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: Count | None = None
    """Passes over the training images; by default as many as make about 6,000 steps, at least one, and no more than
    1,000 unless 3,000 steps need them."""
    only_label: str | None = None
    """Train on the images of these labels alone (with commas), or, with a `!` in front, on all others."""
    checkpoint_every: int = 200_000
    """Training images between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ImageEvalConfig(Limited):
    """One evaluation of a saved image autoencoder on held-out images."""

    images: Count = 4_000
    """Held-out images (fewer if there are fewer)."""
    samples: WholeNumber = 64
    """Draws a held-out image for the importance-weighted bound, for variational models; 0 leaves it out."""
    resamples: Resamples = 1000
    """Bootstrap resamples over images, for the 95% intervals."""
    seed: WholeNumber = 0
    """Seed of draws and bootstrap."""
