"""Files of a store by name, in a local folder or under a URL of object storage (s3://, gs://, any of fsspec's).

    objects = open_objects("s3://bucket/store", cache=cache_dir() / "objects")
    objects.write("manifest.json", b"{}")                  # whole or not at all
    objects.local("shards/000000.safetensors", size, sha256)   # a path on this machine, its content verified

An object is written in one piece and never changed, but for manifests, which are replaced. A dropped connection is
retried with growing pauses; then a StorageError names the object.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sae.base import disk
from sae.base.files import CorruptError, existing, publish_file, remove_leftovers, sha256_of
from sae.base.locks import locked
from sae.config import ConfigError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice the one before, with up to as much again at random."""
RANGE = 16 << 20
"""Bytes of one request where a large object is read by several at once."""
CACHE_BYTES = 32 << 30
"""Bytes of the local copies of remote objects, unless `$SAE_STORE_CACHE_GB` says otherwise."""
LEASE_SECONDS = 900.0
"""After this time without renewal a lease is taken over."""
PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol -> the package that speaks it, and our extra that installs it."""


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


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL; a Path never is."""
    return isinstance(place, str) and "://" in place


def open_objects(place: str | Path, *, cache: Path) -> Objects:
    """The objects at a place, which need not exist.

    Args:
        place: a folder, or a URL.
        cache: folder for local copies of remote objects.

    Raises:
        ConfigError: an unknown protocol, or one whose package is missing; says what to install.
    """
    if not isinstance(place, str) or not is_url(place):
        return LocalObjects(Path(place).expanduser())
    if place.startswith("file://"):
        return LocalObjects(Path(place.removeprefix("file://")))
    return RemoteObjects(place, cache)


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


class RemoteObjects:
    """Objects under a URL, through fsspec; what is read by `local` is kept in a bounded cache."""

    remote = True

    def __init__(self, url: str, cache: Path) -> None:
        import fsspec

        protocol = url.partition("://")[0]
        package, extra = PACKAGES.get(protocol, (None, None))
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(f"--store {url}: {protocol}:// needs {package}: pip install 'sparsight[{extra}]'")
        try:
            filesystem = fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"--store {url}: {protocol}:// cannot be opened ({error})") from error
        self.url = url.rstrip("/")
        # listings are not kept: another worker may write while this process reads
        options = {"use_listings_cache": False} if protocol in PACKAGES else {}
        self._fs: Any = filesystem(**options)
        self._root = str(self._fs._strip_protocol(self.url))
        self._cache = cache
        self._room = int(float(os.environ.get("SAE_STORE_CACHE_GB", CACHE_BYTES / (1 << 30))) * (1 << 30))
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        return self._tried("read", name, lambda path: self._fs.cat_file(path))

    def write(self, name: str, content: bytes) -> None:
        self._tried("written", name, lambda path: self._fs.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        attempted = 0

        def put(path: str) -> bool:
            nonlocal attempted
            attempted += 1
            try:
                self._fs.pipe_file(path, content, mode="create")
                return True
            except FileExistsError:
                # an attempt whose answer was lost may have been the one that wrote it
                return attempted > 1 and self._fs.cat_file(path) == content

        return bool(self._tried("written", name, put))

    def names(self, folder: str) -> dict[str, int]:
        found = self._tried("listed", folder, lambda path: self._fs.ls(path, detail=True)) or []
        return {str(e["name"]).rstrip("/").rpartition("/")[2]: e.get("size") or 0 for e in found if e["name"]}

    def local(self, name: str, size: int, sha256: str) -> Path:
        with self._lock:
            fetching = self._fetching.setdefault(name, threading.Lock())
        with fetching:
            path = self._cache / sha256
            if (
                path.is_file()
                and path.stat().st_size == size
                and (sha256 in self._verified or sha256_of(path) == sha256)
            ):
                with contextlib.suppress(OSError):  # only the order in which copies are given up depends on it
                    os.utime(path)
            else:
                self._fetch(name, path, size, sha256)
            self._verified.add(sha256)
            return path

    @contextlib.contextmanager
    def writing(self, name: str, what: str) -> Iterator[Callable[[], None]]:
        lease = _Lease(self, f"{name}.lease.json", what)
        lease.take()
        try:
            yield lease.renew
        finally:
            lease.release()

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        self._tried("deleted", name, lambda path: self._fs.rm_file(path))

    def _fetch(self, name: str, path: Path, size: int, sha256: str) -> None:
        def whole(remote: str) -> bytes:
            starts = list(range(0, size, RANGE))
            ends = [min(size, start + RANGE) for start in starts]
            if self._fs.info(remote)["size"] != size:
                raise CorruptError(f"{self.where(name)}: {self._fs.info(remote)['size']} bytes, {size} were written")
            return b"".join(self._fs.cat_ranges([remote] * len(starts), starts, ends, on_error="raise"))

        content = self._tried("read", name, whole)
        if content is None:
            raise missing(self.where(name))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise altered(self.where(name))
        self._make_room(size)
        publish_file(path, content)

    def _make_room(self, size: int) -> None:
        """Delete the copies that were used longest ago until `size` more bytes fit; readers keep what they mapped."""
        copies = []
        for path in self._cache.iterdir() if self._cache.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                copies.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(length for _, length, _ in copies)
        for _, length, path in sorted(copies):
            if total + size <= self._room:
                break
            disk.unlink(path)
            total -= length

    def _tried(self, done: str, name: str, act: Callable[[str], T]) -> T | None:
        """The result of `act` on the object's path; None where there is no such object."""
        for attempt in range(ATTEMPTS):
            try:
                return act(f"{self._root}/{name}" if name else self._root)
            except FileNotFoundError:
                return None
            except (CorruptError, ConfigError, TypeError, AttributeError, AssertionError, MemoryError):
                raise  # another attempt would only repeat it
            except PermissionError as error:
                raise StorageError(f"{self.where(name)}: not allowed to be {done} ({error}); check the key") from error
            except Exception as error:  # the libraries behind fsspec raise what they like for a dropped connection
                if attempt + 1 == ATTEMPTS:
                    said = " ".join(str(error).split())[:300] or type(error).__name__
                    raise StorageError(
                        f"{self.where(name)}: cannot be {done} after {ATTEMPTS} attempts ({said}); what was stored "
                        "before is whole: run the same command again once the storage is reached (a training run "
                        "with --resume)"
                    ) from error
                time.sleep(FIRST_PAUSE * 2**attempt * (1 + random.random()))
        raise AssertionError("the last attempt returns or raises")


class _Lease:
    """An object that says who writes, made where there is none: storage that refuses to overwrite lets one in.

    S3 and GCS do. It is renewed before every write, and taken over LEASE_SECONDS after the last renewal, or at once
    where its owner was a process of this machine that has ended. A writer that was paused for so long finds another's
    token and stops before it writes.
    """

    def __init__(self, objects: RemoteObjects, name: str, what: str) -> None:
        self._objects, self._name, self._what = objects, name, what
        self._token = uuid.uuid4().hex

    def take(self) -> None:
        if self._objects.create(self._name, self._content()):
            return
        owner = self._owner()
        if owner is not None and owner["token"] != self._token and not _is_over(owner):
            left = LEASE_SECONDS - (time.time() - owner["renewed"])
            raise ConfigError(
                f"{self._objects.where(self._name)}: another process (pid {owner['pid']} on {owner['host']}) is "
                f"{self._what}; if it has died, wait {left:.0f} s or delete that object"
            )
        self._objects.write(self._name, self._content())
        self.renew()

    def renew(self) -> None:
        owner = self._owner()
        if owner is not None and owner["token"] != self._token:
            raise ConfigError(
                f"{self._objects.where(self._name)}: pid {owner['pid']} on {owner['host']} took over {self._what}; "
                "this process stops before it writes"
            )
        self._objects.write(self._name, self._content())

    def release(self) -> None:
        with contextlib.suppress(StorageError):  # a lease that stays ends by itself
            owner = self._owner()
            if owner is not None and owner["token"] == self._token:
                self._objects.remove(self._name)

    def _content(self) -> bytes:
        owner = {"token": self._token, "pid": os.getpid(), "host": socket.gethostname(), "renewed": time.time()}
        return json.dumps(owner).encode()

    def _owner(self) -> dict[str, Any] | None:
        content = self._objects.read(self._name)
        try:
            owner = json.loads(content or b"null")
        except ValueError:
            return None
        fields = {"token": str, "pid": int, "host": str, "renewed": float}
        known = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in fields.items())
        return owner if known else None


def _is_over(owner: dict[str, Any]) -> bool:
    if time.time() - owner["renewed"] > LEASE_SECONDS:
        return True
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def check_room(place: str | Path, size: int) -> None:
    """Refuse a local folder whose disk has no room for `size` bytes, counting what is there already.

    Raises:
        ConfigError: says what is needed and what is free.
    """
    if is_url(place):
        return
    folder = Path(place).expanduser()
    free = shutil.disk_usage(existing(folder)).free
    size -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > free:
        raise ConfigError(f"--store {place}: {size >> 20} MiB are needed, {free >> 20} MiB are free on that disk")
