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
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"
_TEMPORARY = ".partial-"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "xb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            _flush(stream)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _rename_fault(error, temporary, path)
        raise
    _flush_folder(path.parent)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for file in files:
            with open(file, "rb+") as stream:
                _flush(stream)
        digests = {str(p.relative_to(temporary)): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}
        publish_json(temporary / MANIFEST, {"files": digests})
        for folder in {p.parent for p in files} | {temporary}:
            _flush_folder(folder)
        if path.exists():
            # rename cannot replace a folder that holds files: move the old one aside first
            old = path.with_name(f"{_TEMPORARY}old-{path.name}-{uuid.uuid4().hex[:8]}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _rename_fault(error, temporary, path)
        raise
    _flush_folder(path.parent)


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a .safetensors file inside a folder that `publish_folder` gave; a failed write is an OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
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
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _rename_fault(error: BaseException, temporary: Path, path: Path) -> None:
    """Make an error that names no file, or a temporary one, name the file that was being written."""
    if isinstance(error, OSError) and (error.filename is None or str(error.filename).startswith(str(temporary))):
        error.filename = str(path)


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")
