"""A finished run on a file of activations, opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.config import ConfigError, TensorTrainConfig
from sae.data.tensors import Part, TensorPart, open_tensors
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG
from sae.runs.base import open_folder


class TensorRun(NamedTuple):
    """What the folder of a run on a file of activations holds."""

    folder: Path
    record: dict[str, Any]
    """config.json."""
    model: Autoencoder
    """The saved autoencoder, in inference form."""
    config: TensorTrainConfig
    """What it was trained with."""

    def rows(self, part: Part) -> TensorPart:
        """The rows it was trained on, or those held out.

        Raises:
            ConfigError, DataError: the file is gone, or is another one now.
        """
        asked = self.config.rows
        whole = open_tensors(asked.data, tensor=asked.tensor, column=asked.column)
        began = self.record["data"]
        for name, value in json.loads(json.dumps(whole.provenance())).items():
            if name != "path" and began.get(name) != value:
                raise ConfigError(
                    f"{asked.data}: has changed since {self.folder} was trained: {name} was {began.get(name)!r} in "
                    f"{CONFIG}, now it is {value!r}"
                )
        return whole.part(part, heldout=asked.heldout, seed=asked.split_seed)


def open_tensor_run(run: str | Path, *, device: torch.device | str = "cpu") -> TensorRun:
    """Open a run on a file of activations; the file is not read.

    Raises:
        ConfigError, CorruptError: there is none, or it is of another kind.
    """
    return TensorRun(*open_folder(run, "tensors", TensorTrainConfig, device=device))
