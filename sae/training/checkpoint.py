"""Checkpoints: `checkpoints/<step>/`, each published whole with its hashes, the newest whole one found on resume."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae.base.files import (
    CorruptError,
    check_folder,
    publish_folder,
    publish_json,
    read_json,
    remove_leftovers,
    save_tensors,
)

FORMAT = 2


class Checkpoint(NamedTuple):
    """What was saved."""

    tensors: dict[str, Tensor]
    """The trainer's tensors."""
    trainer: dict[str, Any]
    """The trainer's values."""
    data: dict[str, Any]
    """State of the batch after which training goes on."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], trainer: dict[str, Any], data: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder/<step>` and delete all but the `keep` newest."""
    target = folder / f"{step:09d}"
    with publish_folder(target) as temporary:
        save_tensors(temporary / "state.safetensors", tensors)
        publish_json(temporary / "state.json", {"format": FORMAT, "trainer": trainer, "data": data})
    for old in steps_in(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def steps_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, verified against its hashes, or None where there is none.

    Raises:
        CorruptError: it was damaged after it was written; names the file, and the older checkpoint that could be used.
    """
    remove_leftovers(folder)
    found = steps_in(folder)
    if not found:
        return None
    try:
        check_folder(found[-1])
        values = read_json(found[-1] / "state.json")
        if values.get("format") != FORMAT:
            raise CorruptError(
                f"{found[-1] / 'state.json'}: format {values.get('format')!r}, this version reads {FORMAT}"
            )
        return Checkpoint(load_file(found[-1] / "state.safetensors"), values["trainer"], values["data"])
    except (CorruptError, SafetensorError) as error:
        older = f"delete {found[-1]} to resume from {found[-2].name}" if len(found) > 1 else "no older one is left"
        raise CorruptError(f"{error}; {older}") from error
