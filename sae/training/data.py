"""What a run trains on. Text, images and tensors each answer the same questions, and `train` knows of nothing else.

data = open_data(config, device)                    # TextData, ImageData or TensorData
data.prepare(progress)                              # a language model is loaded here
for batch in data.batches(stop, progress).iterate(None): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from sae.base.progress import Progress, StopSignal
from sae.config import OptimConfig, RunConfig, SAEConfig
from sae.data.batching import Batches
from sae.models.recipe import Recipe


class TrainingData(Protocol):
    """A checked source of batches, and what a run on it records."""

    @property
    def kind(self) -> str:
        """Of the run, in config.json: language, image, tensors or rows."""
        ...

    @property
    def name(self) -> str:
        """Of the data set, as the user gave it."""
        ...

    @property
    def unit(self) -> str:
        """What one sample is, for people and as a key of metrics.jsonl: tokens, images or rows."""
        ...

    @property
    def command(self) -> str:
        """The command that resumes such a run."""
        ...

    @property
    def advice(self) -> str:
        """What to try where the reconstruction is worse than the mean; empty for none."""
        ...

    @property
    def config(self) -> RunConfig:
        """The run's settings, defaults that depend on the data filled in."""
        ...

    @property
    def sae(self) -> SAEConfig:
        """Which autoencoder."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """How its weights move."""
        ...

    @property
    def batch(self) -> int:
        """Samples a step."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the samples."""
        ...

    @property
    def samples(self) -> int:
        """Training samples of all epochs together; for text, as many as were asked for."""
        ...

    @property
    def available(self) -> int | None:
        """Samples of one epoch; None where they are not kept, and for text before they are harvested."""
        ...

    @property
    def left_over(self) -> int:
        """Samples of an epoch that do not fill a batch."""
        ...

    @property
    def harvested(self) -> Mapping[str, int]:
        """Tokens by kind that went through a language model in this process; empty for other data."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """JSON values that identify the data; a resumed run must find the same."""
        ...

    def recipe(self) -> Recipe:
        """The untrained autoencoder and its loss."""
        ...

    def opening(self) -> str:
        """What a person is shown of the data before anything is loaded."""
        ...

    def estimate(self) -> dict[str, Any]:
        """For a dry run: where the data come from; "memory_bytes" and "disk_bytes" beside the autoencoder's own."""
        ...

    def check_space(self) -> None:
        """Refuse data that do not fit into memory or on their disk.

        Raises:
            ConfigError: says which flag to change.
        """
        ...

    def prepare(self, progress: Progress) -> None:
        """Load what the samples come from."""
        ...

    def record(self) -> dict[str, Any]:
        """What config.json says of the data from the start, once prepared, beside `provenance`."""
        ...

    def batches(self, stop: StopSignal, progress: Progress) -> Batches:
        """The batches, after harvesting what is missing."""
        ...

    def first_inputs(self, count: int) -> Iterator[Tensor]:
        """Inputs of the first batches, to time steps by; none where they would have to be harvested."""
        ...

    def finished(self) -> dict[str, Any]:
        """What config.json says of the data once the run is finished."""
        ...


class Ready:
    """What data that need no preparation answer to the last questions."""

    harvested: Mapping[str, int] = {}

    def prepare(self, progress: Progress) -> None:
        """Nothing is to be loaded."""

    def record(self) -> dict[str, Any]:
        """Nothing beside the provenance."""
        return {}

    def finished(self) -> dict[str, Any]:
        """Nothing was learnt of the data."""
        return {}
