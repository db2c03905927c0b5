"""Sparse autoencoders on rows of activations that some model gave: the third tier's trainings, as run folders.

run = trained_rows(RowsConfig(out=..., source="ae-w32, stem", sae=..., epochs=20), rows, tell=print)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sae.base.files import read_json
from sae.config import OptimConfig, RunConfig, SAEConfig
from sae.data.images import ImageSet
from sae.models.autoencoder import Autoencoder
from sae.models.language import recipe_of
from sae.models.recipe import Recipe
from sae.models.saved import CONFIG, load
from sae.training.images import SampleData
from sae.training.run import train
from sae.training.run_folder import check_kept_run


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
    """The run in `config.out`, trained or resumed unless it is finished.

    Args:
        config: where, and with which settings.
        rows: activations float32 [n, d].
        provenance: JSON values that say where they come from.
        tell: told what is trained.

    Raises:
        ConfigError: the run that is there has other settings, or learns from other rows.
    """
    begun = (config.out / CONFIG).is_file()
    if begun:
        check_kept_run(config, provenance)
    if not begun or not read_json(config.out / CONFIG)["autoencoder"]:
        tell(f"{'resuming' if begun else 'training'} {config.out.name}")
        config = dataclasses.replace(config, resume=begun, device="cpu")
        train(config, RowsData(config, rows, provenance))
    record = read_json(config.out / CONFIG)
    return RowsRun(load(config.out), record["training"]["seconds"] / config.epochs)


class RowsData(SampleData):
    """Rows in memory as training data.

    Args:
        config: settings of the run.
        rows: float32 [n, d].
        provenance: JSON values that say where they come from.
    """

    kind, unit, command, advice = "rows", "rows", "sae image compare", ""

    def __init__(self, config: RowsConfig, rows: Tensor, provenance: dict[str, Any]) -> None:
        images = ImageSet(config.source, (1, 1, rows.shape[1]), len(rows), lambda places: rows[places], provenance)
        super().__init__(config, images, config.sae, config.optim, config.epochs)

    def recipe(self) -> Recipe:
        return recipe_of(self.sae, [self.images.dim])
