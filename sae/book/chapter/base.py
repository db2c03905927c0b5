"""What an experiment is given and what it finds; trained autoencoders are real run folders, trained once.

@experiment("linear_is_pca", rows=(2,), title="A linear autoencoder is PCA")
def linear_is_pca(setting: Setting) -> Finding: ...
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from sae.base.files import read_json
from sae.config import ConfigError, ImageDataConfig, ImageTrainConfig, OptimConfig, VisionConfig
from sae.models.saved import CONFIG
from sae.runs.images import ImageRun, open_image_run, open_split, with_labels
from sae.training.run import train
from sae.training.run_folder import check_kept_run

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how large."""

    out: Path
    """Folder of the page; runs are kept in its `runs`."""
    data: str
    """Images, where an experiment does not need a certain set."""
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """Small: fewer images and epochs, for a test of the way and not of the claim."""
    tell: Callable[[str], None] = field(default=lambda text: None)
    """Where progress is said."""

    def pick(self, full: T, quick: T) -> T:
        """The first value, or the second one where the setting is quick."""
        return quick if self.quick else full


class Picture(NamedTuple):
    """A figure with what it shows."""

    figure: Figure
    caption: str
    vector: bool = False
    """Whether it is lines and text alone."""


class Finding(NamedTuple):
    """What an experiment found."""

    text: str
    """The claim and what was measured, in a few sentences."""
    numbers: dict[str, Any]
    """JSON values, and intervals."""
    tables: Sequence[Sequence[Mapping[str, Any]]] = ()
    pictures: Sequence[Picture] = ()


class Experiment(NamedTuple):
    """A claim of the chapter."""

    run: Callable[[Setting], Finding]
    rows: tuple[int, ...]
    """Rows of docs/images.md."""
    title: str
    seeds: str
    """Which seeds it rests on, where these are not those of the page."""


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, *, rows: tuple[int, ...], title: str, seeds: str = ""
) -> Callable[[Callable[[Setting], Finding]], Callable[[Setting], Finding]]:
    """Decorator: makes a function known as the experiment of that name; `seeds` as in `Experiment`.

    Raises:
        ConfigError: the name is taken.
    """

    def register(function: Callable[[Setting], Finding]) -> Callable[[Setting], Finding]:
        if name in EXPERIMENTS:
            raise ConfigError(f"experiment {name!r} is registered already")
        EXPERIMENTS[name] = Experiment(function, rows, title, seeds)
        return function

    return register


def trained(
    setting: Setting,
    name: str,
    vision: VisionConfig,
    *,
    data: str | None = None,
    epochs: int = 60,
    limit: int | None = None,
    seed: int = 0,
    optim: OptimConfig | None = None,
    only_label: str | None = None,
) -> ImageRun:
    """The run `runs/<name>-<data>-<seed>`, trained now unless it is there; its settings must be the same.

    Raises:
        ConfigError: the run that is there has other settings, or other images under the same name.
    """
    chosen = data or setting.data
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in chosen)
    out = setting.out / "runs" / f"{name}-{safe}-{seed}"
    config = ImageTrainConfig(
        images=ImageDataConfig(data=chosen, limit=limit),
        vision=vision,
        optim=optim or OptimConfig(),
        epochs=epochs,
        only_label=only_label,
        seed=seed,
        out=out,
        device="cpu",
    )
    return train_once(config, setting.tell)


def train_once(config: ImageTrainConfig, tell: Callable[[str], None]) -> ImageRun:
    """The run in `config.out`: trained now, or gone on with, unless it is finished.

    Raises:
        ConfigError: the run that is there has other settings, or other images under the same name.
    """
    begun = (config.out / CONFIG).is_file()
    if begun:
        check_kept_run(config, training_data(config.images, config.only_label))
    if not begun or not read_json(config.out / CONFIG)["autoencoder"]:
        tell(f"{'going on with' if begun else 'training'} {config.out.name}")
        train(dataclasses.replace(config, resume=begun))
    return open_image_run(config.out)


@lru_cache
def training_data(images: ImageDataConfig, only_label: str | None = None) -> dict[str, Any]:
    """Where training images come from, as a run's config.json says it; looked up once a process."""
    provenance = with_labels(open_split(images, "train"), only_label).provenance
    return json.loads(json.dumps(provenance))
