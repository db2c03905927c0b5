"""Checkpoints: `checkpoints/<step>/`, each published at once with its hashes; resuming reads the newest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae.base import disk
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
    """State of the last batch; training continues after it."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], trainer: dict[str, Any], data: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder/<step>` and delete all but the `keep` newest."""
    target = folder / f"{step:09d}"
    with publish_folder(target) as temporary:
        save_tensors(temporary / "state.safetensors", tensors)
        publish_json(temporary / "state.json", {"format": FORMAT, "trainer": trainer, "data": data})
    for old in steps_in(folder)[:-keep]:
        disk.remove(old)
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
    checkpoints = steps_in(folder)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    try:
        check_folder(newest)
        values = read_json(newest / "state.json")
        if values.get("format") != FORMAT:
            raise CorruptError(f"{newest / 'state.json'}: format {values.get('format')!r}, this version reads {FORMAT}")
        return Checkpoint(load_file(newest / "state.safetensors"), values["trainer"], values["data"])
    except (CorruptError, SafetensorError) as error:
        older = "no older one is left"
        if len(checkpoints) > 1:
            older = f"delete {newest} to resume from {checkpoints[-2].name}"
        raise CorruptError(f"{error}; {older}") from error
