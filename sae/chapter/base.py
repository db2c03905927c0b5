"""What an experiment is given and what it finds; trained autoencoders are real run folders, trained once.

@experiment("linear_is_pca", rows=(2,), title="A linear autoencoder is PCA")
def linear_is_pca(setting: Setting) -> Finding: ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from sae.config import ConfigError, OptimConfig, to_json
from sae.image_config import ImageDataConfig, ImageTrainConfig, VisionConfig
from sae.image_runs import ImageRun, open_image_run
from sae.models.saved import CONFIG, read_description
from sae.training.images import train_images
from sae.training.run_folder import MAY_CHANGE_ON_RESUME, flat

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


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, *, rows: tuple[int, ...], title: str
) -> Callable[[Callable[[Setting], Finding]], Callable[[Setting], Finding]]:
    """Decorator: makes a function known as the experiment of that name.

    Raises:
        ConfigError: the name is taken.
    """

    def register(function: Callable[[Setting], Finding]) -> Callable[[Setting], Finding]:
        if name in EXPERIMENTS:
            raise ConfigError(f"experiment {name!r} is registered already")
        EXPERIMENTS[name] = Experiment(function, rows, title)
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
        ConfigError: the run that is there has other settings.
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
    if not _finished(out):
        # one that was stopped left its settings and perhaps a checkpoint
        begun = (out / CONFIG).is_file()
        setting.tell(f"{'going on with' if begun else 'training'} {out.name}")
        train_images(dataclasses.replace(config, resume=begun))
    run = open_image_run(out)
    _check_same(config, run)
    return run


def _finished(out: Path) -> bool:
    try:
        read_description(out)
    except (ConfigError, OSError):
        return False
    return True


def _check_same(config: ImageTrainConfig, run: ImageRun) -> None:
    asked, found = flat(to_json(config)), flat(to_json(run.asked))
    for name, value in asked.items():
        if name not in MAY_CHANGE_ON_RESUME and found.get(name) != value:
            raise ConfigError(
                f"{run.folder}: was trained with {name} {found.get(name)}, now {value}; delete the folder, or choose "
                "another --out"
            )
