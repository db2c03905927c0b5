"""Objects under a URL of object storage, through fsspec.

A dropped connection is retried with growing pauses; then a StorageError names the object.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sae.base import disk
from sae.base.files import CorruptError, publish_file, sha256_of
from sae.base.leases import Lease
from sae.base.objects import StorageError, altered, missing
from sae.config import ConfigError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice the one before, with up to as much again at random."""
RANGE = 16 << 20
"""Bytes of one request where a large object is read by several at once."""
CACHE_BYTES = 32 << 30
"""Bytes of the local copies of remote objects, unless `$SAE_STORE_CACHE_GB` says otherwise."""
PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol -> the package that speaks it, and our extra that installs it."""


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
        lease = Lease(self, f"{name}.lease.json", what)
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
