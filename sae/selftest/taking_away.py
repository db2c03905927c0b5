"""Protections that `--break` takes away, so that a harness is seen to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from sae.base import disk, files


@contextlib.contextmanager
def no_hash() -> Iterator[None]:
    """Every file has the SHA-256 that is recorded for it."""

    class Anything(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    from sae.models import saved

    with (
        mock.patch.object(files, "sha256_of", return_value=Anything()),
        mock.patch.object(files, "_digest", return_value=Anything()),
        mock.patch.object(saved, "sha256_of", return_value=Anything()),
    ):
        yield


@contextlib.contextmanager
def no_rename() -> Iterator[None]:
    """A file is written at once under its final name."""

    @contextlib.contextmanager
    def in_place(path: Path) -> Iterator[Path]:
        disk.make_folder(path.parent)
        path.unlink(missing_ok=True)
        yield path
        disk.fsync(path)

    with mock.patch.object(files, "publish_path", in_place):
        yield


@contextlib.contextmanager
def no_moments() -> Iterator[None]:
    """A resumed run begins with empty moments of the optimizer."""
    from sae.training.trainer import Trainer

    restore = Trainer.restore

    def without(self: Trainer, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        changed = {name: t.zero_() if name.startswith("optimizer.") else t for name, t in tensors.items()}
        restore(self, changed, values)

    with mock.patch.object(Trainer, "restore", without):
        yield


@contextlib.contextmanager
def no_place() -> Iterator[None]:
    """A resumed run begins with the first batch of the data."""
    from sae.harvest.buffer import LiveBatches, StoredBatches
    from sae.training.distributed.batches import MeshLiveBatches

    with contextlib.ExitStack() as stack:
        for batches in (LiveBatches, StoredBatches, MeshLiveBatches):
            iterate = batches.iterate
            stack.enter_context(
                mock.patch.object(batches, "iterate", lambda self, state, iterate=iterate: iterate(self, None))
            )
        yield


@contextlib.contextmanager
def no_fsync_errors() -> Iterator[None]:
    """An fsync that fails is taken for one that succeeded."""
    fsync = disk.fsync

    def careless(path: Path) -> None:
        with contextlib.suppress(OSError):
            fsync(path)

    with mock.patch.object(disk, "fsync", careless):
        yield


def no_cap() -> contextlib.AbstractContextManager[Any]:
    """What an archive says of its size is believed."""
    from sae.interop import files as foreign

    return mock.patch.object(foreign, "check_sizes")


def no_guard() -> contextlib.AbstractContextManager[Any]:
    """What libraries raise for a damaged file passes through readers."""
    return mock.patch("sae.base.reading._passes", return_value=True)


@contextlib.contextmanager
def no_watchdog() -> Iterator[None]:
    """Ranks meet and exchange, and none watches over the others or the launcher."""
    from sae.base.guard import Guard
    from sae.base.watchdog import Watchdog

    nothing = {name: mock.DEFAULT for name in ("start", "fail", "check", "leave")}
    with mock.patch.multiple(Watchdog, **nothing), mock.patch.object(Guard, "_watch"):
        yield


TAKEN_AWAY: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no-hash": no_hash,
    "no-cap": no_cap,
    "no-guard": no_guard,
    "no-watchdog": no_watchdog,
    "no-rename": no_rename,
    "no-moments": no_moments,
    "no-place": no_place,
    "no-fsync-errors": no_fsync_errors,
}
"""What --break takes -> a context without that protection."""


def taken_away(broken: str | None) -> contextlib.AbstractContextManager[Any]:
    """A context without the protection; None keeps all."""
    return contextlib.nullcontext() if broken is None else TAKEN_AWAY[broken]()
