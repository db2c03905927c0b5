"""Checkpoints: `checkpoints/<step>/`, each published at once with its hashes; resuming reads the newest."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
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
from sae.base.reading import reading
from sae.models.saved import CONFIG

FORMAT = 2
STATE = "state.safetensors"


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
        save_tensors(temporary / STATE, tensors)
        publish_state(temporary, folder, trainer, data)
    prune(folder, keep)
    return target


def publish_state(temporary: Path, folder: Path, trainer: dict[str, Any], data: dict[str, Any]) -> None:
    """Write what a checkpoint of the checkpoints `folder` holds beside its tensors into its `temporary` folder."""
    state = {"format": FORMAT, "run_sha256": _run_hash(folder), "trainer": trainer, "data": data}
    publish_json(temporary / "state.json", state)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, those too that a kill left between a writing and this."""
    for old in steps_in(folder)[:-keep]:
        disk.remove(old)


def steps_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, verified against its hashes, or None where there is none.

    Raises:
        CorruptError: it was damaged after it was written; names the file, and the older checkpoint that could be used.
    """
    newest = verified(folder)
    return None if newest is None else Checkpoint(read_tensors(newest.path), newest.trainer, newest.data)


def _run_hash(folder: Path) -> str | None:
    """SHA-256 of the settings and data of the run whose checkpoints `folder` holds; None where there is no record.

    The rest of config.json changes when the run is finished.
    """
    path = folder.parent / CONFIG
    if not path.is_file():
        return None
    record = read_json(path)
    lasting = {name: record.get(name) for name in ("train", "data")} if isinstance(record, dict) else record
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


class Verified(NamedTuple):
    """A checkpoint whose files are as they were written."""

    path: Path
    trainer: dict[str, Any]
    data: dict[str, Any]


def verified(folder: Path) -> Verified | None:
    """The newest checkpoint without its tensors, or None where there is none.

    Raises:
        CorruptError: as `load_newest`.
    """
    remove_leftovers(folder)
    checkpoints = steps_in(folder)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    try:
        with reading(newest / "state.json"):
            check_folder(newest)
            values = read_json(newest / "state.json")
            if values.get("format") != FORMAT:
                raise CorruptError(
                    f"{newest / 'state.json'}: format {values.get('format')!r}, this version reads {FORMAT}"
                )
            if values.get("run_sha256") not in (None, _run_hash(folder)):
                raise CorruptError(f"{folder.parent / CONFIG}: is not that of the run whose checkpoints lie beside it")
            if not any(newest.glob("*.safetensors")):
                raise CorruptError(f"{newest}: holds no tensors")
            return Verified(newest, values["trainer"], values["data"])
    except CorruptError as error:
        older = "no older one is left"
        if len(checkpoints) > 1:
            older = f"delete {newest} to resume from {checkpoints[-2].name}"
        raise CorruptError(f"{error}; {older}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, of one process or of several ranks.

    Raises:
        CorruptError: a file cannot be read.
    """
    try:
        if (path / STATE).is_file():
            return load_file(path / STATE)
        return load_parts(path, {}, alone=True)
    except SafetensorError as error:
        raise CorruptError(f"{path}: {error}") from error


def load_parts(path: Path, views: Mapping[str, Tensor], *, alone: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by torch.distributed.checkpoint, whichever number of processes wrote it.

    Args:
        views: tensors (DTensors, of which this rank has a part) that are filled in place; all others come whole.
        alone: whether this process reads without the others of its job.

    Raises:
        CorruptError: a tensor has another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # safetensors: nothing is unpickled
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(path))
    sizes = cast("dict[str, Any]", reader.read_metadata().state_dict_metadata)
    tensors: dict[str, Any] = {}
    for name, about in sizes.items():
        whole = views[name] if name in views else torch.empty(about.size, dtype=about.properties.dtype)
        if whole.shape != about.size:
            raise CorruptError(f"{path}: {name} has the shape {tuple(about.size)}, expected {tuple(whole.shape)}")
        tensors[name] = whole
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what `alone` says
        load(tensors, storage_reader=reader, no_dist=alone)
    return tensors
