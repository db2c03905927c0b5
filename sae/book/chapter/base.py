"""What an experiment is given and what it returns; autoencoders are trained once, in run folders of the usual kind.

@experiment("linear_is_pca", rows=(2,), title="A linear autoencoder is PCA")
def linear_is_pca(setting: Setting) -> Finding: ...
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from sae.base.locks import locked
from sae.config import ConfigError, ImageDataConfig, ImageTrainConfig, OptimConfig, VisionConfig
from sae.models.saved import CONFIG, read_config
from sae.runs.images import ImageRun, open_image_run, open_split, with_labels
from sae.training.run import train
from sae.training.run_folder import check_kept_run

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where experiments are run, and at which size."""

    out: Path
    """Folder of the page; runs are in its `runs`."""
    data: str
    """Images, for experiments that do not need a certain set."""
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """Fewer images and epochs: tests that everything runs, not that the claims hold."""
    tell: Callable[[str], None] = field(default=lambda text: None)
    """Reports progress."""

    def pick(self, full: T, quick: T) -> T:
        """The first value, or the second if the setting is quick."""
        return quick if self.quick else full


class Picture(NamedTuple):
    """A figure and its caption."""

    figure: Figure
    caption: str


class Finding(NamedTuple):
    """The result of an experiment."""

    text: str
    """The claim and what was measured, in a few sentences."""
    numbers: Mapping[str, Any]
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
    """The seeds it uses, if these are not those of the page."""


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, *, rows: tuple[int, ...], title: str, seeds: str = ""
) -> Callable[[Callable[[Setting], Finding]], Callable[[Setting], Finding]]:
    """Decorator that registers a function as the experiment of that name; arguments as in `Experiment`.

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
    """The run `runs/<name>-<data>-<seed>`, trained now unless it exists; its settings must be the same.

    Raises:
        ConfigError: the run that exists has other settings, or other images under the same name.
    """
    images = data or setting.data
    config = ImageTrainConfig(
        images=ImageDataConfig(data=images, limit=limit),
        vision=vision,
        optim=optim or OptimConfig(),
        epochs=epochs,
        only_label=only_label,
        seed=seed,
        out=setting.out / "runs" / f"{name}-{safe_name(images)}-{seed}",
        device="cpu",
    )
    return train_once(config, setting.tell)


def trained_by_seed(setting: Setting, name: str, vision: VisionConfig, **options: Any) -> list[ImageRun]:
    """The run of every seed of the setting; options as of `trained`."""
    return [trained(setting, name, vision, seed=seed, **options) for seed in setting.seeds]


def train_once(config: ImageTrainConfig, tell: Callable[[str], None]) -> ImageRun:
    """The run in `config.out`: trained now, or resumed, unless it is finished.

    Raises:
        ConfigError: the run that exists has other settings, or other images under the same name.
    """
    begun = (config.out / CONFIG).is_file()
    if begun:
        check_kept_run(config, training_data(config.images, config.only_label))
    if not begun or not read_config(config.out)["autoencoder"]:
        tell(f"{'resuming' if begun else 'training'} {config.out.name}")
        train(dataclasses.replace(config, resume=begun))
    return open_image_run(config.out)


@lru_cache
def training_data(images: ImageDataConfig, only_label: str | None = None) -> dict[str, Any]:
    """The provenance of training images, as a run's config.json records it; looked up once a process."""
    provenance = with_labels(open_split(images, "train"), only_label).provenance
    return json.loads(json.dumps(provenance))


def locked_folder(out: Path) -> AbstractContextManager[None]:
    """The folder of a page, created, and locked against other processes.

    Raises:
        ConfigError: it is a file, or another process uses it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    return locked(out)


def safe_name(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
