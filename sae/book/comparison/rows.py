"""Sparse autoencoders on rows of activations that some model gave: the third tier's trainings, as run folders.

run = trained_rows(RowsConfig(out=..., source="ae-w32, stem", sae=..., epochs=20), rows, tell=print)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import publish_json, read_json
from sae.base.progress import Progress, StopSignal
from sae.config import OptimConfig, RunConfig, SAEConfig
from sae.data.images import ImageSet
from sae.models.autoencoder import Autoencoder
from sae.models.language import recipe_of
from sae.models.saved import CONFIG, load
from sae.training.images import USUAL_BATCH, ImageBatches
from sae.training.loop import take_steps
from sae.training.run_folder import check_kept_run, check_run_folder, finish_record, new_record, own_folder
from sae.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RowsConfig(RunConfig):
    """One training run on rows of activations held in memory."""

    source: str
    """What gave the rows."""
    sae: SAEConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 20
    """Passes over the rows."""


class RowsRun(NamedTuple):
    """A finished run."""

    model: Autoencoder
    """In its saved form."""
    seconds: float
    """Of an epoch."""


def trained_rows(
    config: RowsConfig, rows: Tensor, provenance: dict[str, Any], *, tell: Callable[[str], None]
) -> RowsRun:
    """The run in `config.out`, trained now, or gone on with, unless it is finished.

    Args:
        config: where, and with which settings.
        rows: activations float32 [n, d].
        provenance: JSON values that say where they come from.
        tell: where progress is said.

    Raises:
        ConfigError: the run that is there has other settings, or learns from other rows.
    """
    begun = (config.out / CONFIG).is_file()
    if begun:
        check_kept_run(config, provenance)
    if not begun or not read_json(config.out / CONFIG)["autoencoder"]:
        tell(f"{'going on with' if begun else 'training'} {config.out.name}")
        _train(dataclasses.replace(config, resume=begun), rows, provenance)
    record = read_json(config.out / CONFIG)
    return RowsRun(load(config.out), record["training"]["seconds"] / config.epochs)


def _train(config: RowsConfig, rows: Tensor, provenance: dict[str, Any]) -> None:
    check_run_folder(config)
    dim = rows.shape[1]
    held = ImageSet(config.source, (1, 1, dim), len(rows), lambda places: rows[places], provenance)
    batch = config.optim.batch or min(USUAL_BATCH, len(rows))
    batches = ImageBatches(held, batch=batch, epochs=config.epochs, seed=config.seed)
    trainer = Trainer(
        recipe_of(config.sae, [dim]),
        config.optim,
        steps=batches.steps,
        dead_after=config.sae.dead_after or max(1, batches.steps * batch // 10),
        auxk=config.sae.auxk or max(1, dim // 2),
        device=torch.device("cpu"),
        seed=config.seed,
    )
    with own_folder(config), StopSignal() as stop, Progress() as progress:
        if not config.resume:
            publish_json(config.out / CONFIG, new_record(config, kind="rows", data=provenance))
        hint = "the same command goes on; finished runs are kept"
        take_steps(config, trainer, batches, batch, stop, progress, hint=hint, unit="rows")
        finish_record(config, trainer, batch=batch)
