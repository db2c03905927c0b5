"""Firing rates of latents over a training: one run with checkpoints, each of them measured.

points = firing_over_time(setting, ground, member, epochs=20, limit=4000)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae.base.files import check_folder, read_json
from sae.book.chapter.base import Setting, safe_name, train_once
from sae.book.comparison.grounds import Ground
from sae.book.comparison.plan import Member
from sae.config import ImageDataConfig, ImageTrainConfig, OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.models.vision import recipe_of
from sae.runs.images import dense_codes
from sae.training.checkpoint import steps_in
from sae.training.trainer import Trainer

POINTS = 10  # checkpoints along a run


class Moment(NamedTuple):
    """A checkpoint of a training."""

    images: int
    """Seen so far."""
    rates: Tensor
    """Share of held-out rows in which each latent fires, in the saved form, [F]."""


def firing_over_time(setting: Setting, ground: Ground, member: Member, *, epochs: int, limit: int) -> list[Moment]:
    """Train `member` with seed 0 and checkpoints, unless it is trained already, and measure each checkpoint."""
    config = ImageTrainConfig(
        images=ImageDataConfig(data=ground.data, limit=limit),
        vision=member.vision,
        epochs=epochs,
        out=setting.out / "runs" / f"course-{member.name}-{safe_name(ground.data)}",
        device="cpu",
        checkpoint_every=max(1, epochs * len(ground.train) // POINTS),
        keep_checkpoints=2 * POINTS,
    )
    batch = train_once(config, setting.tell).record["training"]["batch"]
    moments = []
    for folder in steps_in(config.out / "checkpoints"):
        check_folder(folder)
        model = _restored(folder, config, ground)
        rates = (dense_codes(model, ground.heldout) != 0).double().mean(0)
        moments.append(Moment(int(folder.name) * batch, rates))
    return moments


def _restored(folder: Path, config: ImageTrainConfig, ground: Ground) -> Autoencoder:
    """The autoencoder of a checkpoint, as it would have been saved then."""
    trainer = Trainer(
        recipe_of(config.vision, ground.shape, len(ground.train)),
        OptimConfig(),
        steps=1,
        dead_after=1,
        auxk=1,
        device=torch.device("cpu"),
        seed=0,
    )
    trainer.restore(load_file(folder / "state.safetensors"), read_json(folder / "state.json")["trainer"])
    return trainer.finished()
