"""The autoencoders that several experiments share: the textbook's, a good bottleneck of any size, and untrained ones.

run = bottleneck(setting, 10, seed=1)    # trained once, whichever experiment asks first
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae.book.chapter.base import Setting, trained
from sae.config import OptimConfig, VisionConfig
from sae.models.autoencoder import Autoencoder
from sae.models.vision import recipe_of
from sae.runs.images import ImageRun, dense_codes

HIDDEN = (256,)
"""The chapter's. A second hidden layer costs twice the steps: after 40 epochs on mnist5k 512-256-64 left FVU .19 where
256-64 left .12."""
NOISE = 0.1
"""Noise on training inputs, against knowing 4,000 digits by heart."""
OPTIM = OptimConfig(lr=3e-3, decay=0.5)
CHAPTER_LATENTS = 64


def chapter_network(setting: Setting, seed: int = 0) -> ImageRun:
    """The chapter's autoencoder, pixels-256-64-256-pixels, trained on clean inputs."""
    vision = VisionConfig(variant="ae", width=CHAPTER_LATENTS, hidden=(256,))
    return trained(setting, "chapter", vision, epochs=setting.pick(40, 8), optim=OPTIM, seed=seed)


def bottleneck(setting: Setting, k: int, seed: int = 0) -> ImageRun:
    """An autoencoder with k latents that holds on to its figures on held-out images."""
    vision = VisionConfig(variant="ae", width=k, hidden=HIDDEN, corruption="gaussian", corruption_level=NOISE)
    epochs = setting.pick(60, 25)
    return trained(setting, f"bottleneck-{k}", vision, epochs=epochs, optim=OPTIM, seed=seed)


def variational(setting: Setting, k: int, seed: int = 0) -> ImageRun:
    """Its variational sibling: the same network, a Bernoulli likelihood and the divergence from the prior."""
    vision = VisionConfig(variant="vae", width=k, hidden=HIDDEN)
    epochs = setting.pick(60, 25)
    return trained(setting, f"variational-{k}", vision, epochs=epochs, optim=OPTIM, seed=seed)


def random_codes(run: ImageRun, x: Tensor, seed: int) -> Tensor:
    """Codes of images [n, D] by a run's network as it was before its first step, [n, k]."""
    return dense_codes(untrained(run.vision, run.shape, seed), x)


def untrained(vision: VisionConfig, shape: Sequence[int], seed: int) -> Autoencoder:
    """The configured autoencoder for images of the shape [C, H, W], as it is before its first step."""
    model = recipe_of(vision, shape, 1000).model  # the number of images matters to terms alone
    model.initialise(torch.Generator().manual_seed(seed))
    return model.eval()
