"""A training run on images: the same trainer, loop and run folder as a language model's.

result = train_images(ImageTrainConfig(images=ImageDataConfig(data="digits"), out=Path("runs/vae"), ...))
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from sae.base.device import pick_device
from sae.base.files import publish_json
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, ImageTrainConfig, refuse_ignored, usual_epochs
from sae.data.batching import Batch, permutation
from sae.data.images import ImageSet
from sae.data.prefetch import prefetch
from sae.models.recipe import Recipe
from sae.models.saved import CONFIG
from sae.models.settings import ignored_by_images
from sae.models.vision import recipe_of
from sae.runs.images import open_split, with_labels
from sae.training.loop import take_steps
from sae.training.optimizers import check_optimizer
from sae.training.run_folder import check_finite, check_run_folder, finish_record, new_record, own_folder
from sae.training.trainer import Trainer

USUAL_BATCH = 128
HELD_BYTES = 512 << 20  # sets up to this size are kept in memory; larger ones are rendered batch by batch
AHEAD = 4  # batches rendered while others are trained on
HINT = (
    "Try a lower --lr or a longer --warmup; for dark or sparse images, --likelihood bernoulli or --output linear; "
    "for a code that is held to a prior, a lower --beta or a longer --kl-warmup."
)
UNTIMED, TIMED = 3, 7  # steps by which a run's time is estimated: the first ones compile and allocate


class ImageTrainResult(NamedTuple):
    """What a finished run gives."""

    out: Path
    """The run folder."""
    variant: str
    steps: int
    images: int
    """Training images."""
    parameters: int
    """Trained numbers."""
    seconds: float
    """Wall time of training in this process."""
    last: dict[str, Any]
    """The last line of metrics.jsonl."""
    lr: float
    """Peak learning rate."""
    route: str
    """How steps were taken: fused or autograd."""


class ImageBatches:
    """Every image once an epoch in an order of (seed, epoch) alone; what does not fill a batch is left out."""

    def __init__(self, images: ImageSet, *, batch: int, epochs: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.per_epoch = images.count // batch
        if self.per_epoch == 0:
            raise ConfigError(f"--batch {batch}: {images.name} has only {images.count} training images")
        self.steps = self.per_epoch * epochs
        self._held = images.all() if 4 * images.count * images.dim <= HELD_BYTES else None

    @property
    def held_bytes(self) -> int:
        """Of images kept in memory; 0 where they are rendered batch by batch."""
        return 0 if self._held is None else self._held.nbytes

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the beginning, or from after the batch that carried `state`."""
        if state is not None and state.get("batch") != self.batch:
            raise ConfigError(f"--resume: batch was {state.get('batch')}, now it is {self.batch}; a run keeps its own")
        stream = self._from(0 if state is None else int(state["step"]))
        return stream if self._held is not None else prefetch(stream, AHEAD)

    def _from(self, step: int) -> Iterator[Batch]:
        order, epoch = torch.zeros(0, dtype=torch.int64), -1
        for now in range(step, self.steps):
            if now // self.per_epoch != epoch:
                epoch = now // self.per_epoch
                order = permutation(self.images.count, self.seed, epoch)
            start = (now % self.per_epoch) * self.batch
            chosen = order[start : start + self.batch]
            x = self.images.render(chosen) if self._held is None else self._held[chosen]
            yield Batch(x, x, {"step": now + 1, "batch": self.batch})


class ImagePlan(NamedTuple):
    """A checked run."""

    config: ImageTrainConfig
    """Its settings, the number of epochs written out."""
    images: ImageSet
    """The training part."""
    recipe: Recipe
    batch: int
    """Images a step."""
    epochs: int
    """Passes over the images."""
    device: torch.device


def plan_images(config: ImageTrainConfig) -> ImagePlan:
    """Check everything that can be checked before a step is taken.

    Raises:
        ConfigError, DataError: a setting is wrong; the message says what exists.
    """
    check_finite(config)
    check_optimizer(config.optim)
    device = pick_device(config.device)
    if not config.resume:
        check_run_folder(config)
    images = with_labels(open_split(config.images, "train"), config.only_label)
    batch = config.optim.batch or min(USUAL_BATCH, max(1, images.count))
    epochs = config.epochs or usual_epochs(images.count, batch)
    config = dataclasses.replace(config, epochs=epochs)
    if config.resume:
        check_run_folder(config)
    recipe = recipe_of(config.vision, images.shape, images.count)
    if not config.resume:  # a run keeps the settings that it was begun with
        refuse_ignored(config.vision, ignored_by_images(config.vision, images.shape))
        refuse_ignored(config.optim, config.optim.ignored())
    return ImagePlan(config, images, recipe, batch, epochs, device)


def train_images(config: ImageTrainConfig) -> ImageTrainResult:
    """Run `config` to its end and save the autoencoder in `config.out`.

    Raises:
        ConfigError, DataError: a setting is wrong; nothing was written.
        DivergedError: a step was not finite; the state before it was kept as a checkpoint.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    plan = plan_images(config)
    config = plan.config
    with own_folder(config), StopSignal() as stop, Progress() as progress:
        if not config.resume:
            record = new_record(config, kind="image", data=plan.images.provenance)
            publish_json(config.out / CONFIG, record)
        return _train_locked(plan, stop, progress)


def estimate_images(plan: ImagePlan) -> dict[str, Any]:
    """Shapes, steps, memory, disk and time of a run; the time by a few steps that are taken and thrown away."""
    batches, trainer = _parts(plan)
    seconds = _seconds(batches, trainer)
    parameters = _parameters(trainer)
    checkpoints = plan.config.keep_checkpoints + 1
    return {
        "data": plan.images.name,
        "images": plan.images.count,
        "input": [plan.batch, *plan.images.shape],
        "dictionary": list(trainer.model.dictionary.W.shape),
        "parameters": parameters,
        "epochs": plan.epochs,
        "steps": batches.steps,
        "route": trainer.route.name,
        "memory_bytes": {"weights_gradients_moments": 16 * parameters, "images": batches.held_bytes},
        "disk_bytes": {"run": 4 * parameters * (1 + 3 * checkpoints)},
        "seconds": {"training": round(seconds, 3)},
        "device": str(plan.device),
    }


def _seconds(batches: ImageBatches, trainer: Trainer) -> float:
    """How long all steps will take, by a few of them; `trainer` is used up."""
    inputs = [batch.input for batch in islice(batches.iterate(None), UNTIMED + TIMED)]
    trainer.initialise(inputs, inputs)
    taken = []
    for x in inputs:
        begun = time.perf_counter()
        trainer.step(x, x)
        taken.append(time.perf_counter() - begun)
    return median(taken[UNTIMED:] or taken) * batches.steps


def _parts(plan: ImagePlan) -> tuple[ImageBatches, Trainer]:
    """What a run is made of."""
    config = plan.config
    batches = ImageBatches(plan.images, batch=plan.batch, epochs=plan.epochs, seed=config.seed)
    rows = batches.steps * plan.batch * plan.recipe.model.positions
    trainer = Trainer(
        plan.recipe,
        config.optim,
        steps=batches.steps,
        dead_after=config.vision.dead_after or max(1, min(10_000_000, rows // 10)),
        auxk=config.vision.auxk or max(1, plan.images.dim // 2),
        device=plan.device,
        seed=config.seed,
    )
    return batches, trainer


def _parameters(trainer: Trainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def _told(seconds: float) -> str:
    """A length of time for people: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _train_locked(plan: ImagePlan, stop: StopSignal, progress: Progress) -> ImageTrainResult:
    config = plan.config
    seconds = _seconds(*_parts(plan))
    batches, trainer = _parts(plan)
    progress.say(
        f"Training {batches.steps:,} steps of {plan.batch:,} images, {plan.epochs:,} passes over "
        f"{plan.images.count:,}, {trainer.route.name} route: about {_told(seconds)} in all."
    )
    begun = time.perf_counter()
    hint = f"continue with: sae image train --resume --out {config.out}"
    last = take_steps(config, trainer, batches, plan.batch, stop, progress, hint=hint, unit="images")
    seconds = time.perf_counter() - begun
    finish_record(config, trainer, batch=plan.batch)
    if last["fvu"] > 1:
        progress.say(f"FVU {last['fvu']:.2f}: worse than the mean image. {HINT}")
    return ImageTrainResult(
        out=config.out,
        variant=config.vision.variant,
        steps=batches.steps,
        images=plan.images.count,
        parameters=_parameters(trainer),
        seconds=seconds,
        last=last,
        lr=trainer.peak,
        route=trainer.route.name,
    )
