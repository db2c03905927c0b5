"""Files of a store by name; see `sae.base.storage.open_objects`. Here: what such a place can do, and local folders.

An object is written in one piece and never changed, but for manifests, which are replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from sae.base import disk
from sae.base.files import CorruptError, publish_file, remove_leftovers, sha256_of
from sae.base.locks import locked


class StorageError(RuntimeError):
    """An object could not be read or written although it was tried several times; the message names it."""


class Objects(Protocol):
    """Objects by name; a name has parts with `/` between them."""

    remote: bool

    def where(self, name: str) -> str:
        """Path or URL, for people."""
        ...

    def read(self, name: str) -> bytes | None:
        """Content; None where there is no such object."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace an object, whole or not at all."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; whether it was written."""
        ...

    def names(self, folder: str) -> dict[str, int]:
        """Objects and folders directly in `folder` -> sizes in bytes (0 for folders), sorted; last parts alone."""
        ...

    def local(self, name: str, size: int, sha256: str) -> Path:
        """A path on this machine with the object's content, which is compared with its hash once in a process.

        Raises:
            CorruptError: it is missing, of another size or of another content; names it.
        """
        ...

    def writing(self, name: str, what: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Keep other processes from writing what `name` stands for; yields a check to be called before each write.

        Raises:
            ConfigError: another process writes it; names the process.
        """
        ...


class LocalObjects:
    """Objects that are files of a folder."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[str] = set()

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        publish_file(self.folder / name, content)

    def create(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        disk.make_folder(path.parent)
        with locked(path.parent, "create", "creating the same file"):
            remove_leftovers(path.parent, path.name)
            if path.exists():
                return False
            publish_file(path, content)
            return True

    def names(self, folder: str) -> dict[str, int]:
        path = self.folder / folder
        found = sorted(path.iterdir()) if path.is_dir() else []
        return {entry.name: entry.stat().st_size if entry.is_file() else 0 for entry in found}

    def local(self, name: str, size: int, sha256: str) -> Path:
        path = self.folder / name
        if name not in self._verified:
            if not path.is_file():
                raise missing(self.where(name))
            if path.stat().st_size != size:
                raise CorruptError(f"{path}: {path.stat().st_size} bytes, {size} were written{REMEDY}")
            if sha256_of(path) != sha256:
                raise altered(self.where(name))
            self._verified.add(name)
        return path

    @contextlib.contextmanager
    def writing(self, name: str, what: str) -> Iterator[Callable[[], None]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, name, what):
            yield lambda: None


REMEDY = "; delete the store and harvest again, or copy that file anew from where it came"


def missing(where: str) -> CorruptError:
    """The error for an object that is listed and not there."""
    return CorruptError(f"{where}: missing, though its manifest lists it{REMEDY}")


def altered(where: str) -> CorruptError:
    """The error for an object whose content is another than was written."""
    return CorruptError(
        f"{where}: its SHA-256 is not the one that was written; the file was changed or damaged{REMEDY}"
    )
