"""A file of activations as training data, of any model: mapped or streamed, mixed within a buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, TensorTrainConfig
from sae.data.tensors import TensorPart, open_tensors
from sae.harvest.buffer import StoredBatches, batches_in
from sae.harvest.rows import Rows
from sae.models.language import find_variant, recipe_of
from sae.models.recipe import Recipe
from sae.models.settings import check_together, refuse_unread
from sae.training.data import Ready

SITE = "rows"


class TensorStore:
    """Rows of a file as `StoredBatches` reads a store."""

    in_memory = False

    def __init__(self, part: TensorPart) -> None:
        self.part, self.rows, self.dtype = part, part.rows, part.whole.dtype
        self.identity = {"sites": {SITE: part.whole.width}}
        self.part_rows = [part.rows]

    def ahead(self, rows: range | Tensor) -> None:
        """Nothing has to be made ready."""

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        """Rows by number; they belong to no document."""
        none = torch.zeros(len(rows), dtype=torch.int8)
        return Rows({SITE: self.part.read(rows)}, none, none, none, none, none)


class TensorData(Ready):
    """Implements `TrainingData`.

    Raises:
        ConfigError, DataError: a setting is wrong, or the file cannot be read; the message says what exists.
    """

    kind, unit, command = "tensors", "rows", "sae train"
    advice = "Try a lower --lr or a longer --warmup."

    def __init__(self, config: TensorTrainConfig, device: torch.device) -> None:
        self.device = device
        self.config, self.sae, self.optim, self.epochs = config, config.sae, config.optim, config.epochs
        variant = find_variant(config.sae)
        reads = "another place than it writes" if variant.transcodes else "several places"
        reads = "pairs of neighbouring tokens" if variant.neighbours else reads
        if variant.transcodes or variant.several_sites or variant.neighbours:
            raise ConfigError(f"--variant {config.sae.variant}: reads {reads}; rows of a file are of one place")
        if not config.resume:  # a run keeps the settings that it was begun with
            refuse_unread(config.sae, config.optim, variant)
        check_together(config.sae, config.optim, variant)
        self.whole = open_tensors(config.rows.data, tensor=config.rows.tensor, column=config.rows.column)
        self.name = self.whole.name
        self.part = self.whole.part("train", heldout=config.rows.heldout, seed=config.rows.split_seed)
        self.batch = config.optim.batch or min(4096 if device.type == "cuda" else 2048, self.part.rows)
        split = {"heldout": config.rows.heldout, "split_seed": config.rows.split_seed}
        self._provenance = {**self.whole.provenance(), **split}
        self.available, self.left_over = self.part.rows, self.part.rows % self.batch
        self.samples = (self.available - self.left_over) * config.epochs
        if not self.samples:
            raise ConfigError(f"--batch {self.batch}: {self.whole.name} has only {self.available} training rows")

    @property
    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def recipe(self) -> Recipe:
        return recipe_of(self.sae, [self.whole.width])

    def opening(self) -> str:
        heldout = self.whole.count - self.available
        dtype = str(self.whole.files[0].dtype).removeprefix("torch.")
        return (
            f"Data: {self.whole.name}, {self.whole.count:,} rows of width {self.whole.width:,}, {dtype}; "
            f"{heldout:,} of them held out."
        )

    def estimate(self) -> dict[str, Any]:
        buffer = self.config.buffer_mb << 20
        return {
            "data": str(self.whole.path),
            "name": self.whole.files[0].name,
            "rows": self.available,
            "input": [self.batch, self.whole.width],
            "memory_bytes": {"rows": min(self.available * self._row_bytes, buffer)},
        }

    @property
    def _row_bytes(self) -> int:
        return self.whole.width * self.whole.dtype.itemsize

    def check_space(self) -> None:
        batches_in(self.config.buffer_mb << 20, self._row_bytes, self.batch)

    def prepare(self, progress: Progress) -> None:
        progress.say(self.opening())

    def batches(self, stop: StopSignal, progress: Progress) -> StoredBatches:
        return StoredBatches(
            TensorStore(self.part),  # type: ignore[arg-type] - a store but for what a harvest appends
            [SITE],
            [SITE],
            batch=self.batch,
            epochs=self.epochs,
            buffer_bytes=self.config.buffer_mb << 20,
            seed=self.config.seed,
            device=self.device,
        )

    def first_inputs(self, count: int) -> Iterator[Tensor]:
        return (self.part.read(rows) for rows in self._first_ranges(count))

    def _first_ranges(self, count: int) -> list[range]:
        """The first rows of the file, unshuffled: a buffer takes long to fill."""
        whole = min(count, self.available // self.batch)
        return [range(i * self.batch, (i + 1) * self.batch) for i in range(whole)]
