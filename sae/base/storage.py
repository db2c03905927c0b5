"""A place for the files of a store: a local folder, or a URL of object storage (s3://, gs://, any of fsspec's).

objects = open_objects("s3://bucket/store", cache=cache_dir() / "objects")
objects.write("manifest.json", b"{}")                  # whole or not at all
objects.local("shards/000000.safetensors", size, sha256)   # a path on this machine, its content verified
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sae.base.files import existing
from sae.base.objects import LocalObjects, Objects
from sae.base.remote_objects import RemoteObjects
from sae.config import ConfigError


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
