"""What a run on the activations of a language model reads and takes, known before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sae.base.device import available_memory, product_rate
from sae.base.storage import check_room
from sae.config import ConfigError, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import Documents
from sae.harvest.buffer import batches_in
from sae.harvest.identity import store_identity
from sae.harvest.language_model import ModelSource, load_tokenizer
from sae.harvest.opening import opening
from sae.harvest.precision import read_dtype, stored_bytes
from sae.harvest.rows import PLACE_BYTES
from sae.harvest.sites import Site
from sae.harvest.store import DiskStore
from sae.models.language import recipe_of
from sae.models.recipe import Recipe


@dataclass
class TextPlan:
    """The places, documents and sizes of a run."""

    config: TrainConfig
    source: ModelSource
    inputs: list[Site]
    """Where the autoencoder reads."""
    targets: list[Site]
    """Where its reconstruction belongs; `inputs` again unless it transcodes."""
    documents: Documents
    """The training part."""
    device: torch.device
    batch: int
    layer_parameters: int
    """Parameters of the language model that a harvest runs through."""
    precision: str
    """In what activations are kept; auto until the first forward pass has been seen."""
    opened: DiskStore | None = None
    """The store that is named, if it is there."""

    @property
    def sae(self) -> SAEConfig:
        return self.config.sae

    @property
    def optim(self) -> OptimConfig:
        return self.config.optim

    @property
    def epochs(self) -> int:
        return self.config.epochs

    @property
    def samples(self) -> int:
        return self.config.tokens * self.config.epochs

    @property
    def sites(self) -> list[Site]:
        """All places that are harvested, each once."""
        return list(dict.fromkeys([*self.inputs, *self.targets]))

    @property
    def name(self) -> str:
        return self.config.harvest.dataset

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's activations in memory; what auto chooses takes two a number nearly always."""
        itemsize = 2 if self.precision == "auto" else read_dtype(self.precision).itemsize
        return sum(widths(self.sites)) * itemsize

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tokens where they are kept, in memory or in a store."""
        in_store = sum(stored_bytes(self.precision, width) for width in widths(self.sites))
        return self.config.tokens * (PLACE_BYTES + (self.row_bytes if self.config.store is None else in_store))

    @property
    def complete(self) -> bool:
        """Whether the store holds all that the run needs, so that no text goes through the model."""
        opened = self.opened
        return opened is not None and (opened.rows >= self.config.tokens or (opened.ended and opened.rows > 0))

    @property
    def cached(self) -> bool:
        """Whether activations are kept (for several epochs, or because a store was named)."""
        return self.config.epochs > 1 or self.config.store is not None

    @property
    def provenance(self) -> dict[str, Any]:
        return self.documents.provenance

    @property
    def store_identity(self) -> dict[str, Any]:
        """What a store of this harvest records of it."""
        data = self.documents.provenance
        return store_identity(self.config.harvest, self.source, self.sites, data, precision=self.precision)

    def recipe(self) -> Recipe:
        return recipe_of(self.config.sae, widths(self.inputs), widths(self.targets))

    def opening(self) -> str:
        return opening(self.documents, load_tokenizer(self.source), self.config.harvest)

    def estimate(self) -> dict[str, Any]:
        """The device's speed is measured on one product."""
        config, rate = self.config, product_rate(self.device)
        store = self.kept_bytes
        step_flops = 3 * (sum(widths(self.inputs)) + sum(widths(self.targets))) * config.sae.width * self.samples
        return {
            "site": ", ".join(site.name for site in self.inputs),
            "module": ", ".join(site.path for site in self.inputs),
            **({} if self.targets == self.inputs else {"target_site": self.targets[0].name}),
            "input": [self.batch, sum(widths(self.inputs))],
            "steps": self.samples // self.batch,
            "training_tokens": self.samples,
            "memory_bytes": {
                "language_model": self.language_model_bytes,
                "activations": store if self.in_memory else min(store, config.buffer_mb << 20),
            },
            "disk_bytes": {"store": store if config.store else 0},
            "seconds": {
                "harvest": 0.0 if self.complete else round(2 * self.layer_parameters * config.tokens / rate / 0.7, 1),
                "training": round(step_flops / rate / 0.7, 1),
            },
            "measured_gflops": round(rate / 1e9, 1),
        }

    @property
    def language_model_bytes(self) -> int:
        """Memory of the part of the language model that a harvest runs through."""
        return self.layer_parameters * (4 if self.device.type == "cpu" else 2)

    @property
    def spare_bytes(self) -> int:
        """Memory of the device that the trainer and the buffer take once the language model is loaded."""
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in self.recipe().model.parameters())
        # weights, gradients and two moments; blocks of a live harvest stay on the device
        return 16 * parameters + (0 if self.cached else self.config.buffer_mb << 20)

    @property
    def in_memory(self) -> bool:
        """Whether all activations are kept in memory."""
        return self.cached and self.config.store is None

    def check_space(self) -> None:
        config, store = self.config, self.kept_bytes
        if self.in_memory:
            free = available_memory(torch.device("cpu"))
            if store > free * 0.7:
                raise ConfigError(
                    f"--epochs {config.epochs}: activations of {config.tokens} tokens take {store >> 20} MiB of "
                    f"memory, {free >> 20} MiB are free; keep them on disk: --store DIR"
                )
        else:
            overlap = self.device.type == "cuda" and not self.cached
            batches_in(config.buffer_mb << 20, self.row_bytes, self.batch, overlap=overlap)
        if config.store is not None and not self.complete:
            check_room(config.store, store)


def widths(sites: list[Site]) -> list[int]:
    """Widths of the activations at sites that were measured."""
    return [site.width or 0 for site in sites]
