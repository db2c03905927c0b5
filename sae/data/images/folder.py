"""A folder of the user's pictures; sub-folders are labels.

    pictures/cat/1.jpg  pictures/cat/old/2.png  pictures/dog/3.jpg      labels: cat, cat, dog
    pictures/1.jpg  pictures/2.jpg                                      no labels

All files are read but hidden ones (whose name, or that of a folder above, starts with a dot). A file that is no picture
is refused by name, and so are pictures beside sub-folders, which would have no label. The order is that of the paths.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from sae.data.images.base import ImageSet
from sae.data.images.pictures import Picture, Pictures, choose_form, renderer
from sae.data.rows import DataError, stamp


def folder(path: Path, *, size: int | None = None, channels: int | None = None) -> ImageSet:
    """The pictures in a folder and all its sub-folders, brought to one form (see `pictures.choose_form`).

    Raises:
        DataError: no folder, nothing in it, unreadable files, or pictures both in sub-folders and beside them.
        ConfigError: size or channels out of range.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    files = find_files(path)
    names = sorted({_label(file, path) for file in files} - {""})
    if beside := [file for file in files if names and not _label(file, path)]:
        raise DataError(
            f"{path}: sub-folders are labels ({', '.join(names[:5])}), but {len(beside)} files lie beside them, "
            f"{beside[0].name} first, and would have none; move them into a sub-folder or elsewhere"
        )
    pictures = Pictures(len(files), lambda position: Picture(str(files[position]), files[position]))
    form = choose_form(pictures, size, channels)
    place = {name: label for label, name in enumerate(names)}
    return ImageSet(
        name=f"folder:{path}",
        shape=(form.channels, form.rows, form.columns),
        count=len(files),
        render=renderer(pictures, form),
        provenance={"name": f"folder:{path}", "path": str(path.absolute()), "sha256": _digest(files, path)},
        labels=torch.tensor([place[_label(file, path)] for file in files]) if names else None,
        label_names=tuple(names),
    )


def find_files(path: Path) -> list[Path]:
    """All files under a folder except hidden ones, in the order of their paths.

    Raises:
        DataError: there is none.
    """
    paths = []
    # links to folders are followed, or the files behind them would be left out silently
    for parent, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent) / name for name in files if not name.startswith(".")]
    if not paths:
        raise DataError(f"{path}: holds no files")
    return sorted(paths)


def _label(file: Path, path: Path) -> str:
    """The first folder on the way from `path` to the file; empty for a file directly in it."""
    steps = file.relative_to(path).parts
    return steps[0] if len(steps) > 1 else ""


def _digest(files: list[Path], path: Path) -> str:
    """SHA-256 of all files' names, sizes, and first and last MiB."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps(stamp(file, path)).encode())
    return digest.hexdigest()
