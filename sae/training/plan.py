"""What a run will do, settled and checked before any weight is read."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch

from sae.base.device import pick_device
from sae.config import ConfigError, ImageTrainConfig, RunConfig, TensorTrainConfig, TrainConfig
from sae.models.recipe import Recipe
from sae.training.data import TrainingData
from sae.training.graphs import graph_for
from sae.training.optimizers import check_optimizer
from sae.training.precision import precision
from sae.training.routes import check_weights
from sae.training.run_folder import check_finite, check_run_folder, new_record, read_record
from sae.training.trainer import Trainer


class Plan(NamedTuple):
    """A checked run."""

    config: RunConfig
    data: TrainingData
    recipe: Recipe
    """On the meta device: shapes without memory."""
    device: torch.device
    dead_after: int
    """Rows of codes (one a token, one a place of an image) without firing after which a latent is dead."""
    auxk: int
    """Dead latents the auxiliary loss uses."""

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.recipe.model.parameters() if p.requires_grad)

    def trainer(self, steps: int) -> Trainer:
        """An untrained autoencoder with its optimizer, for a run of `steps`."""
        return Trainer(
            self.data.recipe(),
            self.data.optim,
            steps=steps,
            dead_after=self.dead_after,
            auxk=self.auxk,
            device=self.device,
            seed=self.config.seed,
        )

    def record(self) -> dict[str, Any]:
        """What config.json holds from the start."""
        record = new_record(self.data.config, kind=self.data.kind, data=self.data.provenance)
        return {**record, **self.data.record()}


def make_plan(config: RunConfig, data: TrainingData | None = None) -> Plan:
    """Check everything that can be checked without reading weights, but for memory and disk (see `check_space`).

    Args:
        config: the run's settings.
        data: what to train on; by default what `config` names.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    check_finite(config)
    device = pick_device(config.device)
    check_run_folder(config)
    data = data or open_data(config, device)
    check_optimizer(data.optim)
    if config.resume:
        _check_same_data(data)
    with torch.device("meta"):
        recipe = data.recipe()
    compute, _ = precision(data.optim, device)
    check_weights(recipe, data.optim, compute, device)
    graph_for(recipe, data.optim, compute, device)
    codes = data.samples * recipe.model.positions
    return Plan(
        config=data.config,
        data=data,
        recipe=recipe,
        device=device,
        dead_after=data.sae.dead_after or max(1, min(10_000_000, codes // 10)),
        auxk=data.sae.auxk or max(1, sum(recipe.target_widths) // 2),
    )


def open_data(config: RunConfig, device: torch.device) -> TrainingData:
    """The data that a configuration names. Packages of other kinds are not imported.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    if isinstance(config, TrainConfig):
        from sae.training.text import open_text

        return open_text(config, device)
    if isinstance(config, ImageTrainConfig):
        from sae.training.images import ImageData

        return ImageData(config)
    if isinstance(config, TensorTrainConfig):
        from sae.training.tensors import TensorData

        return TensorData(config, device)
    raise TypeError(f"{type(config).__name__} names no data; give it to train() beside the settings")


def _check_same_data(data: TrainingData) -> None:
    """Refuse to resume on other data than the run began with."""
    began = read_record(data.config.out)["data"]
    for name, value in json.loads(json.dumps(data.provenance)).items():  # as it is read back
        if began.get(name) != value:
            raise ConfigError(
                f"--resume: {data.name} has changed since the run began: {name} was {began.get(name)!r}, now it is "
                f"{value!r}"
            )
