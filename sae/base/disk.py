"""The few operations by which this package changes a disk, each in one function.

`sae.base.files` writes through them. A harness sees each operation as it happens, and may delay it, leave it out, raise
an OSError in its place or end the process:

    def full_disk(operation: Operation, perform: Callable[[], None]) -> None:
        if operation.kind == "write" and operation.path.name == "state.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))
        perform()

    with observed(full_disk):
        sae.train(config)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

Kind = Literal["make_folder", "write", "append", "commit", "fsync", "rename", "unlink", "remove_folder", "fsync_folder"]
KINDS: tuple[str, ...] = get_args(Kind)
TEMPORARY = ".partial-"
"""What names of files that are not yet complete begin with."""


class Operation(NamedTuple):
    """One change of the disk.

    - make_folder: an empty folder.
    - write: a new file at `path`, with all its bytes, which may still be in the system's cache.
    - append: more bytes at the end of `path`.
    - commit: a transaction of SQLite on the database `path`, which SQLite itself makes durable.
    - fsync: all bytes of the file `path` are on the disk.
    - rename: `path` takes the name `target`, and replaces a file there.
    - unlink: the file `path` is removed.
    - remove_folder: the empty folder `path` is removed.
    - fsync_folder: the names in the folder `path` are on the disk, though not their bytes.
    """

    kind: Kind
    path: Path
    data: bytes | None = None
    """write and append: the bytes. None where a library writes the file: it is at `path` once `perform` returns."""
    target: Path | None = None
    """rename: the new name."""


Observer = Callable[[Operation, Callable[[], None]], None]
"""Gets an operation and the function that performs it; what it raises is raised in place of the operation."""
_observer: Observer | None = None


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Give every operation in this process to `observer`, which performs it or does not."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def _do(operation: Operation, perform: Callable[[], None]) -> None:
    if _observer is None:
        perform()
    else:
        _observer(operation, perform)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, each durable in the one above."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        _do(Operation("make_folder", folder), lambda folder=folder: folder.mkdir(exist_ok=True))
        fsync_folder(folder.parent)


def make_temporary(path: Path) -> None:
    """Make a folder that a crash may lose, since its name is a temporary one."""
    _do(Operation("make_folder", path), path.mkdir)


def write(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a new file; `content` may be a function that writes to the stream it is given."""

    def perform() -> None:
        with open(path, "xb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)

    _do(Operation("write", path, None if callable(content) else content), perform)


def write_by(path: Path, perform: Callable[[], None]) -> None:
    """`perform` is a call into a library that writes the file `path`."""
    _do(Operation("write", path), perform)


def append(path: Path, data: bytes) -> None:
    """Add bytes at the end of a file; after an error it is as long as before.

    What was appended survives a kill of the process. A kill in the middle, or a loss of power before `fsync`, can leave
    a part of it: readers drop a last line without its end.
    """

    def perform() -> None:
        with open(path, "ab") as stream:
            size = stream.tell()
            try:
                stream.write(data)
                stream.flush()
            except BaseException:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)
                raise

    _do(Operation("append", path, data), perform)


def commit(path: Path, perform: Callable[[], None]) -> None:
    """`perform` commits SQLite's transaction on the database `path`."""
    _do(Operation("commit", path), perform)


def fsync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    _do(Operation("fsync", path), lambda: _flush(path))


def fsync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _do(Operation("fsync_folder", path), lambda: _flush(path))


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name on the same disk, at once; a file of that name is replaced."""
    _do(Operation("rename", path, target=target), lambda: os.replace(path, target))


def unlink(path: Path) -> None:
    """Remove a file, where there is one."""
    _do(Operation("unlink", path), lambda: path.unlink(missing_ok=True))


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; a folder loses its name first, so no part of it stays."""
    if path.is_symlink() or not path.is_dir():
        unlink(path)
        return
    if not path.name.startswith(TEMPORARY):
        aside = temporary_name(path)
        rename(path, aside)
        path = aside
    for folder, names, files in os.walk(path, topdown=False):
        for name in files:
            unlink(Path(folder, name))
        for name in names:
            _remove_empty(Path(folder, name))
    _remove_empty(path)


def _remove_empty(path: Path) -> None:
    if path.is_symlink():
        unlink(path)
    else:
        _do(Operation("remove_folder", path), path.rmdir)


def copy_from(source: Path) -> Callable[[BinaryIO], None]:
    """The content of another file, for `write`."""

    def content(stream: BinaryIO) -> None:
        with open(source, "rb") as file:
            shutil.copyfileobj(file, stream, 1 << 20)

    return content


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
