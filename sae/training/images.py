"""Images as training data: every image once an epoch, in an order that the seed alone decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, ImageTrainConfig, OptimConfig, RunConfig, SAEConfig, refuse_ignored, usual_epochs
from sae.data.batching import Batch, permutation
from sae.data.images import ImageSet
from sae.data.prefetch import prefetch
from sae.models.recipe import Recipe
from sae.models.settings import ignored_by_images
from sae.models.vision import recipe_of
from sae.runs.images import open_split, with_labels
from sae.training.data import Ready

USUAL_BATCH = 128
MEMORY_BYTES = 512 << 20  # sets up to this size are kept in memory; larger ones are rendered batch by batch
AHEAD = 4  # batches rendered while others are trained on


class ImageBatches:
    """Every image once an epoch in an order of (seed, epoch) alone; what does not fill a batch is left out."""

    def __init__(self, images: ImageSet, *, batch: int, epochs: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.per_epoch = images.count // batch
        if self.per_epoch == 0:
            raise ConfigError(f"--batch {batch}: {images.name} has only {images.count} training images")
        self.steps = self.per_epoch * epochs
        self._pixels = images.all() if memory_bytes(images) else None

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the beginning, or from after the batch that carried `state`."""
        if state is not None and state.get("batch") != self.batch:
            raise ConfigError(f"--resume: batch was {state.get('batch')}, now it is {self.batch}; a run keeps its own")
        stream = self._from(0 if state is None else int(state["step"]))
        return stream if self._pixels is not None else prefetch(stream, AHEAD)

    def _from(self, step: int) -> Iterator[Batch]:
        order, epoch = torch.zeros(0, dtype=torch.int64), -1
        for now in range(step, self.steps):
            if now // self.per_epoch != epoch:
                epoch = now // self.per_epoch
                order = permutation(self.images.count, self.seed, epoch)
            start = (now % self.per_epoch) * self.batch
            picked = order[start : start + self.batch]
            x = self.images.render(picked) if self._pixels is None else self._pixels[picked]
            yield Batch(x, x, {"step": now + 1, "batch": self.batch})


def memory_bytes(images: ImageSet) -> int:
    """Bytes of a set that is kept in memory; 0 where it is rendered batch by batch."""
    size = 4 * images.count * images.dim
    return size if size <= MEMORY_BYTES else 0


class SampleData(Ready):
    """Implements `TrainingData` for a set of images, or for rows in memory that are given as images of one row."""

    kind: str
    unit: str
    command: str
    advice: str

    def __init__(self, config: RunConfig, images: ImageSet, sae: SAEConfig, optim: OptimConfig, epochs: int) -> None:
        self.name = images.name
        self.config, self.images, self.sae, self.optim, self.epochs = config, images, sae, optim, epochs
        self.batch = optim.batch or min(USUAL_BATCH, max(1, images.count))
        self.available, self.left_over = images.count, images.count % self.batch
        self.samples = (images.count - self.left_over) * epochs
        if not self.samples:
            raise ConfigError(f"--batch {self.batch}: {images.name} has only {images.count} training {self.unit}")

    @property
    def provenance(self) -> dict[str, Any]:
        return self.images.provenance

    def recipe(self) -> Recipe:
        raise NotImplementedError

    def opening(self) -> str:
        return f"Data: {self.images.name}, {self.images.count:,} {self.unit} of {list(self.images.shape)}."

    def estimate(self) -> dict[str, Any]:
        return {
            "data": self.images.name,
            self.unit: self.images.count,
            "input": [self.batch, *self.images.shape],
            "memory_bytes": {self.unit: memory_bytes(self.images)},
        }

    def check_space(self) -> None:
        pass  # at most `MEMORY_BYTES`

    def batches(self, stop: StopSignal, progress: Progress) -> ImageBatches:
        return ImageBatches(self.images, batch=self.batch, epochs=self.epochs, seed=self.config.seed)

    def first_inputs(self, count: int) -> Iterator[Tensor]:
        batches = ImageBatches(self.images, batch=self.batch, epochs=self.epochs, seed=self.config.seed)
        return (batch.input for batch in islice(batches.iterate(None), count))


class ImageData(SampleData):
    """A set of images by name.

    Raises:
        ConfigError, DataError: a setting is wrong; the message says what exists.
    """

    kind, unit, command = "image", "images", "sae image train"
    advice = (
        "Try a lower --lr or a longer --warmup; for dark or sparse images, --likelihood bernoulli or --output linear; "
        "for a code that is held to a prior, a lower --beta or a longer --kl-warmup."
    )

    def __init__(self, config: ImageTrainConfig) -> None:
        images = with_labels(open_split(config.images, "train"), config.only_label)
        batch = config.optim.batch or min(USUAL_BATCH, max(1, images.count))
        epochs = config.epochs or usual_epochs(images.count, batch)
        config = dataclasses.replace(config, epochs=epochs)
        super().__init__(config, images, config.vision, config.optim, epochs)
        self.vision = config.vision
        self.recipe()  # refuses settings that do not go together
        if not config.resume:  # a run keeps the settings that it was begun with
            refuse_ignored(config.vision, ignored_by_images(config.vision, images.shape))
            refuse_ignored(config.optim, config.optim.ignored())

    def recipe(self) -> Recipe:
        return recipe_of(self.vision, self.images.shape, self.images.count)
