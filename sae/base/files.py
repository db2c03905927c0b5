"""The one way in which files are written, so that nothing half-written is mistaken for a complete file.

A file or folder is written under a temporary name beside its final one, flushed to the disk, then renamed. A folder
gets a `manifest.json` with the SHA-256 of every file in it, written last. A reader that calls `check_folder` knows that
it reads what was written.

    with publish_folder(run / "checkpoints" / "1200") as folder:
        save_file(tensors, folder / "weights.safetensors")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sae.base import disk

MANIFEST = "manifest.json"


class CorruptError(ValueError):
    """A file is missing, cut short or changed since it was written; the message names it."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def publish_file(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `path` completely or not at all; `content` may be a function that writes to the stream it is given."""
    with publish_path(path) as temporary:
        disk.write(temporary, content)


@contextlib.contextmanager
def publish_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file that is written there becomes `path` on a clean exit."""
    temporary = disk.temporary_name(path)
    try:
        disk.make_folder(path.parent)
        yield temporary
        disk.fsync(temporary)
        disk.rename(temporary, path)
        disk.fsync_folder(path.parent)
    except BaseException as error:
        _discard(temporary)
        _rename_fault(error, temporary, path)
        raise


def write_file(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Write a file inside a folder that `publish_folder` gave, which makes it durable; text as UTF-8."""
    disk.write(path, content.encode() if isinstance(content, str) else content)


def publish_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON through `publish_file`; NaN and infinities are refused (ValueError)."""
    publish_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file; CorruptError names the file where it is missing, not JSON, or holds NaN or 1e999."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: cannot be read as JSON ({error})") from error


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on a clean exit it gets a manifest, is flushed, and becomes `path`.

    An existing `path` is replaced in two renames; a kill between them leaves neither in place, so folders that must
    survive one (checkpoints, shards) get a new name each. On an exception the temporary folder is removed and `path`
    stays as it was.
    """
    temporary = disk.temporary_name(path)
    try:
        disk.make_folder(path.parent)
        disk.make_temporary(temporary)
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for file in files:
            disk.fsync(file)
        digests = {str(p.relative_to(temporary)): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}
        publish_json(temporary / MANIFEST, {"files": digests})
        for folder in sorted(p for p in temporary.rglob("*") if p.is_dir()):
            disk.fsync_folder(folder)
        old = _moved_aside(path)
        try:
            disk.rename(temporary, path)
        except BaseException:
            if old is not None:
                disk.rename(old, path)
            raise
        disk.fsync_folder(path.parent)
        if old is not None:
            disk.remove(old)
    except BaseException as error:
        _discard(temporary)
        _rename_fault(error, temporary, path)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a .safetensors file inside a folder that `publish_folder` gave; a failed write is an OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        disk.write_by(path, lambda: save_file(dict(tensors), path))
    except SafetensorError as error:
        # only its text distinguishes a full disk from a wrong tensor: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def check_folder(path: Path) -> None:
    """Compare every file of a published folder with its manifest.

    Raises:
        CorruptError: the manifest is missing or a file is missing, of another size, or of another content.
    """
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CorruptError(f"{path / MANIFEST}: not a manifest")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CorruptError(f"{path / MANIFEST}: names a file outside its folder: {name}")
        if not file.is_file():
            raise CorruptError(f"{file}: missing, though {MANIFEST} lists it")
        if file.stat().st_size != entry["bytes"]:
            raise CorruptError(f"{file}: {file.stat().st_size} bytes, {entry['bytes']} were written")
        if sha256_of(file) != entry["sha256"]:
            raise CorruptError(f"{file}: its SHA-256 is not the one that was written; the file was changed or damaged")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that a killed writer left directly in `folder`."""
    for path in folder.glob(f"{disk.TEMPORARY}*"):
        disk.remove(path)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _rename_fault(error: BaseException, temporary: Path, path: Path) -> None:
    """Make an error that names no file, or a temporary one, name the file that was being written."""
    if isinstance(error, OSError) and (error.filename is None or str(error.filename).startswith(str(temporary))):
        error.filename = str(path)


def _moved_aside(path: Path) -> Path | None:
    """The new name of what was at `path`, where there was anything: rename cannot replace a folder that holds files."""
    if not path.exists():
        return None
    old = disk.temporary_name(path)
    disk.rename(path, old)
    return old


def _discard(temporary: Path) -> None:
    """Remove what was written under a temporary name; where that fails too, the first error is the one to report."""
    with contextlib.suppress(OSError):
        disk.remove(temporary)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")
