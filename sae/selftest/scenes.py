"""Everything that the toolkit writes, each with the function by which it is read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae.models.saved import load, verify
from sae.run import Run
from sae.selftest.harness import Task
from sae.training.run import train


class Scene(NamedTuple):
    """Files, and what reads them."""

    name: str
    """What they are."""
    folder: Path
    """Where they lie."""
    other: Path
    """The same files of another run."""
    files: list[str]
    """Paths in the folder."""
    read: Callable[[Path], Any]
    """Reads the folder as users do; returns everything that it read."""


def make_scenes(task: Task) -> list[Scene]:
    """Two runs that differ in their seed, with all that is made of them."""
    folders = [task.folder / name for name in ("one", "other")]
    with contextlib.redirect_stderr(io.StringIO()):  # what training tells a person
        for seed, folder in enumerate(folders):
            train(task.world.config(folder / "run", seed=seed))
    one, other = folders
    return [Scene("weights", one / "run", other / "run", ["config.json", "sae.safetensors"], _weights)]


def _weights(folder: Path) -> Any:
    verify(folder)
    return {"record": Run(folder).record, "state": dict(load(folder).state_dict())}
