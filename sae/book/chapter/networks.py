"""The autoencoders that several experiments share, each trained by the first experiment that needs it.

runs = bottlenecks(setting, 10)          # one a seed
run = vae(setting, seed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.book.chapter.base import Setting, trained, trained_by_seed
from sae.config import OptimConfig, VisionConfig
from sae.models.autoencoder import Autoencoder
from sae.models.vision import recipe_of
from sae.runs.images import ImageRun, dense_codes

HIDDEN = (256,)
"""The chapter's. A second hidden layer needs twice the steps: after 40 epochs on mnist5k 512-left FVU .19,
256-64 left .12."""
NOISE = 0.1
"""Noise on training inputs, against memorising 4,000 digits."""
OPTIM = OptimConfig(lr=3e-3, decay=0.5)
CHAPTER_LATENTS = 64
LATENTS = 16
EPOCHS, QUICK_EPOCHS = 40, 20


def chapter_networks(setting: Setting) -> list[ImageRun]:
    """The chapter's autoencoder, pixels-256-64-256-pixels, trained on clean inputs."""
    vision = VisionConfig(variant="ae", width=CHAPTER_LATENTS, hidden=(256,))
    return trained_by_seed(setting, "chapter", vision, epochs=setting.pick(40, 8), optim=OPTIM)


def bottlenecks(setting: Setting, k: int) -> list[ImageRun]:
    """Autoencoders of k latents that generalise to held-out images."""
    vision = VisionConfig(variant="ae", width=k, hidden=HIDDEN, corruption="gaussian", corruption_level=NOISE)
    return trained_by_seed(setting, f"bottleneck-{k}", vision, epochs=setting.pick(60, 25), optim=OPTIM)


def variational_bottlenecks(setting: Setting, k: int) -> list[ImageRun]:
    """VAEs of the same network, with a Bernoulli likelihood."""
    vision = VisionConfig(variant="vae", width=k, hidden=HIDDEN)
    return trained_by_seed(setting, f"variational-{k}", vision, epochs=setting.pick(60, 25), optim=OPTIM)


def vae(setting: Setting, seed: int = 0, *, width: int = LATENTS, **settings: Any) -> ImageRun:
    """A variational autoencoder on the setting's images; `settings` are `VisionConfig`'s."""
    name = f"vae-{width}" + "".join(f"-{value}" for value in settings.values())
    return _twin(setting, name, VisionConfig(variant="vae", width=width, **settings), seed)


def ae(setting: Setting, seed: int = 0) -> ImageRun:
    """The same without noise and divergence, with the same likelihood: nothing else differs."""
    vision = VisionConfig(variant="ae", width=LATENTS, likelihood="bernoulli")
    return _twin(setting, f"ae-{LATENTS}-bernoulli", vision, seed)


def _twin(setting: Setting, name: str, vision: VisionConfig, seed: int) -> ImageRun:
    # on 4,000 digits 3 nats better than batches of 128 at 1e-3, in the same time
    optim = OptimConfig(lr=2e-3, batch=64)
    return trained(setting, name, vision, epochs=setting.pick(EPOCHS, QUICK_EPOCHS), optim=optim, seed=seed)


def heldout(run: ImageRun, limit: int) -> Tensor:
    """The first held-out images [n, D]."""
    return run.images("heldout", limit=limit).all()


def random_codes(run: ImageRun, x: Tensor, seed: int) -> Tensor:
    """Codes [n, k] of images [n, D] by a run's network before its first step."""
    return dense_codes(untrained(run.vision, run.shape, seed), x)


def untrained(vision: VisionConfig, shape: Sequence[int], seed: int) -> Autoencoder:
    """The configured autoencoder for images of shape [C, H, W], before its first step."""
    model = recipe_of(vision, shape, 1000).model  # only loss terms depend on the number of images
    model.initialise(torch.Generator().manual_seed(seed))
    return model.eval()
