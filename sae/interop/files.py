"""Other tools' files, read without executing anything: names and shapes first, then tensors.

shapes_in(path)                              # {"W_enc": (768, 24576), ...}, from the header alone
tensors_in(path)                             # {"W_enc": Tensor, ...}, float32
take(tensors, {"W_enc": (768, 24576)}, source=path)
"""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sae.base.files import MANIFEST, CorruptError, read_json, sha256_of
from sae.base.finite import all_finite
from sae.base.npz import check_sizes, shape_and_type
from sae.base.reading import reading

TORCH = (".pt", ".pth", ".bin")
Shape = tuple[int, ...]


def shapes_in(path: Path) -> dict[str, Shape]:
    """Name -> shape of every tensor in a .safetensors, .npz or torch file; empty where it is none of them.

    A torch file's tensors are mapped and not read. A dict inside a dict gives names joined by a dot.
    """
    with contextlib.suppress(CorruptError, OSError), reading(path):
        return _shapes(path)
    return {}


def check_readable(path: Path) -> None:
    """Refuse a file, or a folder with one, that has the ending of weights or settings and cannot be read as such.

    Raises:
        CorruptError: names the first of them, and why.
    """
    inside = [path] if path.is_file() else sorted([*path.iterdir(), *(path / "checkpoints").glob("*")])
    for file in inside:
        if not file.is_file():
            continue
        if file.suffix == ".json":
            read_json(file)
        with reading(file):
            _shapes(file)


def check_manifest(path: Path) -> None:
    """Compare a file or folder with the manifest beside it or in it, as `sae export` writes one; else do nothing.

    Files that the manifest names and are not there are left to the reader: a part of a repository may be enough.

    Raises:
        CorruptError: a file is not the one that was exported.
    """
    for folder in (path, path.parent) if path.is_dir() else (path.parent,):
        for name, entry in _manifest(folder).items():
            file = folder / name
            if ".." not in Path(name).parts and file.is_file() and sha256_of(file) != entry.get("sha256"):
                raise CorruptError(f"{file}: its SHA-256 is not the one in {MANIFEST}; the file was changed or damaged")


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> entry of a folder's manifest of ours; empty where there is none."""
    if not (folder / MANIFEST).is_file():
        return {}
    record = read_json(folder / MANIFEST)
    files = record.get("files") if isinstance(record, dict) else None
    entries = files if isinstance(files, dict) else {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict) and "sha256" in entry}


def _shapes(path: Path) -> dict[str, Shape]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npz":
        return {name: _header(path, name) for name in _members(path)}
    if path.suffix in TORCH:
        return {name: tuple(tensor.shape) for name, tensor in _tensors_of(_torch(path)).items()}
    return {}


def tensors_in(path: Path, rows: Mapping[str, int | None] | None = None) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors, .npz or torch file; floating point in float32.

    Args:
        path: the file.
        rows: only these tensors, as far as they are there: all of it, or one entry of its first axis.

    Raises:
        CorruptError: the file cannot be read, or holds anything but tensors, numbers and text.
    """
    with reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = file.keys() if rows is None else [name for name in rows if name in file.keys()]  # noqa: SIM118
                tensors = {name: _row(file.get_slice(name), (rows or {}).get(name)) for name in names}
        elif path.suffix == ".npz":
            check_sizes(path)
            with np.load(path, allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
        elif path.suffix in TORCH:
            tensors = _tensors_of(_torch(path))
        else:
            raise CorruptError(f"{path}: expected a .safetensors, .npz, {', '.join(TORCH)} file")
    if rows is not None and path.suffix != ".safetensors":
        tensors = {name: _row(tensors[name], row) for name, row in rows.items() if name in tensors}
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _row(tensor: Any, row: int | None) -> Tensor:
    """A whole tensor, or the entry `row` of its first axis, of a tensor or of a slice that reads from a file."""
    return tensor[...] if row is None else tensor[row : row + 1][0]


def values_in(path: Path) -> dict[str, Any]:
    """What a torch file holds beside its tensors: numbers, text, lists."""
    loaded = _torch(path)
    return {name: value for name, value in loaded.items() if not isinstance(value, Tensor)}


def settings_in(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds one table; empty where there is no such file.

    Raises:
        CorruptError: it is something else.
    """
    if not path.is_file():
        return {}
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path}: not YAML ({error})") from error
    else:
        value = read_json(path)
    if not isinstance(value, dict):
        raise CorruptError(f"{path}: expected a table of settings, got {type(value).__name__}")
    return value


def take(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], *, source: Path, ignore: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of these names, each of its expected shape; any other name is refused, but for those to ignore.

    Raises:
        CorruptError: names the key, its shape and the shape that is expected.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise CorruptError(f"{source}: {name} {shape} is missing; it holds {', '.join(sorted(tensors))}")
        if tuple(tensors[name].shape) != shape:
            hint = "; it is transposed" if tuple(tensors[name].shape) == shape[::-1] else ""
            raise CorruptError(f"{source}: {name} has the shape {tuple(tensors[name].shape)}, expected {shape}{hint}")
        if not all_finite(tensors[name]):
            raise CorruptError(f"{source}: {name} has numbers that are not finite")
    if unknown := sorted(set(tensors) - set(shapes) - set(ignore)):
        raise CorruptError(f"{source}: {', '.join(unknown)}: not part of this format; expected {', '.join(shapes)}")
    return {name: tensors[name] for name in shapes}


def _torch(path: Path) -> dict[str, Any]:
    """A torch file's dict, with nothing executed.

    Raises:
        CorruptError: it holds code, no dict, or a member that says it is larger than the file.
    """
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_members(path)
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=archive)
    except pickle.UnpicklingError as error:
        raise CorruptError(f"{path}: holds objects beside tensors, whose code is not executed") from error
    except MemoryError as error:
        raise CorruptError(f"{path}: claims more than fits into memory") from error
    if not isinstance(loaded, dict):
        raise CorruptError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}")
    return loaded


def _check_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise CorruptError(f"{path}: cannot be read ({error})") from error
    size = path.stat().st_size
    for member in members:
        if member.file_size > size:  # torch compresses none
            raise CorruptError(f"{path}: {member.filename} says {member.file_size:,} bytes, and the file has {size:,}")


def _tensors_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[prefix + str(name)] = value
        elif isinstance(value, Mapping):
            tensors |= _tensors_of(value, f"{prefix}{name}.")
    return tensors


def _members(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _header(path: Path, name: str) -> Shape:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        return shape_and_type(member)[0]


def text_of(value: Any) -> str | None:
    """A setting as text, None where it is missing."""
    return None if value is None else value if isinstance(value, str) else json.dumps(value)
