"""The one way in which files are written, so that nothing half-written is mistaken for a complete file.

Every change of the disk goes through `sae.base.disk`, where a harness can see it and make it fail.

A file or folder is written under a temporary name beside its final one, flushed to the disk, then renamed. A folder
gets a `manifest.json` with the SHA-256 of every file in it, written last. A reader that calls `check_folder` knows that
it reads what was written. A JSON object has a hash of its content in it, which `read_json` checks.

    with publish_folder(run / "checkpoints" / "1200") as folder:
        save_file(tensors, folder / "weights.safetensors")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sae.base import disk

MANIFEST = "manifest.json"
SEALED, HASH, SEAL_VERSION = "sparsight_hashed", "sparsight_sha256", 1
_CHANGED = "it was damaged, or edited by hand, and no file of a run may be; restore it from a copy"


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
    """Write `value` as indented JSON through `publish_file`, an object with a hash of its content in it.

    Raises:
        ValueError: NaN or an infinity.
    """
    publish_file(path, _dumped(_sealed(value) if isinstance(value, dict) else value))


def write_json(path: Path, value: Any) -> None:
    """Write JSON for another tool, without a hash, inside a folder that `publish_folder` gave."""
    write_file(path, _dumped(value))


def read_json(path: Path, *, hashed: bool = False) -> Any:
    """Parse a JSON file, and compare it with the hash in it where there is one; the hash is no part of the result.

    Args:
        path: the file, of this package or of another tool.
        hashed: refuse a file without a hash.

    Raises:
        CorruptError: names the file: it is missing, not JSON, names a key twice, holds NaN or 1e999, or its content is
            not what was written.
    """
    value, was_hashed = read_checked(path)
    if hashed and not was_hashed:
        raise CorruptError(f"{path}: the hash of its content is missing; {_CHANGED}")
    return value


class Checked(NamedTuple):
    """What `read_checked` gives."""

    value: Any
    hashed: bool
    """Whether the file has a hash, which its content agrees with."""


def read_checked(path: Path) -> Checked:
    """As `read_json`, and whether there was a hash."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict) or not value.keys() & {SEALED, HASH}:
        return Checked(value, hashed=False)
    digest, version = value.pop(HASH, None), value.pop(SEALED, None)
    if version != SEAL_VERSION or digest != _digest(value):
        raise CorruptError(f"{path}: its content is not what was written (its hash differs); {_CHANGED}")
    return Checked(value, hashed=True)


def parse_json(content: bytes | str) -> Any:
    """The value of JSON text that came from a file.

    Raises:
        ValueError: it is not UTF-8 or not JSON, names a key twice, holds NaN, 1e999 or half a surrogate pair (which
            JSON allows and nothing can show), or is nested too deeply.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""An escaped half of a surrogate pair, or one by itself; two escaped halves that belong together are a character."""


def _sealed(value: dict[str, Any]) -> dict[str, Any]:
    """With a hash of the content as the last key; the first key says that there is one, should the last be lost."""
    content = json.loads(json.dumps(value, allow_nan=False))  # as it will be read back
    return {SEALED: SEAL_VERSION, **content, HASH: _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def publish_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder; on a clean exit it gets a manifest, is flushed, and becomes `path`.

    An existing `path` is replaced in two renames; a kill between them leaves neither in place, so folders that must
    survive one (checkpoints, shards) get a new name each. On an exception the temporary folder is removed and `path`
    stays as it was.

    Raises:
        OSError: the disk refuses; or not `replace`, and another process has made `path` in the meantime.
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
        old = _moved_aside(path) if replace else None
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


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete the temporary files and folders that a killed writer left directly in `folder`.

    Args:
        folder: in which no other process is writing them.
        name: only those of files whose names begin so.
    """
    for path in folder.glob(f"{disk.TEMPORARY}{name}*"):
        disk.remove(path)


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which a symbolic link lies: it may stand for any file of this machine.

    The links of the hub's cache are allowed, each of which leads to a file in the `blobs` beside its snapshots.

    Raises:
        CorruptError: names the link and where it leads.
    """
    blobs = folder.resolve().parent.parent / "blobs"
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and path.resolve().parent != blobs:
                raise CorruptError(
                    f"{path}: a symbolic link to {os.readlink(path)}; expected a file or folder: put what it leads to "
                    "in its place"
                )


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


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not allowed")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return value
