"""The autoencoders that several experiments share: a variational one and its plain twin.

run = vae(setting, seed=1)               # trained once, whichever experiment asks first
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.book.chapter.base import Setting, trained
from sae.config import OptimConfig, VisionConfig
from sae.runs.images import ImageRun

LATENTS = 16
EPOCHS, QUICK_EPOCHS = 40, 20


def vae(setting: Setting, seed: int = 0, *, width: int = LATENTS, **settings: Any) -> ImageRun:
    """A variational autoencoder on the setting's images; `settings` are `VisionConfig`'s."""
    return _usual(setting, "vae", seed, width, settings)


def ae(setting: Setting, seed: int = 0, *, width: int = LATENTS, **settings: Any) -> ImageRun:
    """The same without noise and divergence, scored by the same likelihood: nothing else differs."""
    return _usual(setting, "ae", seed, width, {"likelihood": "bernoulli", **settings})


def _usual(setting: Setting, variant: str, seed: int, width: int, settings: dict[str, Any]) -> ImageRun:
    said = "".join(f"-{value}" for value in settings.values())
    vision = VisionConfig(variant=variant, width=width, **settings)
    epochs = setting.pick(EPOCHS, QUICK_EPOCHS)
    # on 4,000 digits worth 3 nats more than batches of 128 at 1e-3, in the same time
    optim = OptimConfig(lr=2e-3, batch=64)
    return trained(setting, f"{variant}-{width}{said}", vision, epochs=epochs, optim=optim, seed=seed)


def heldout(run: ImageRun, limit: int) -> Tensor:
    """The first held-out images [n, D]."""
    images = run.images("heldout", limit=limit)
    return images.render(torch.arange(images.count))
