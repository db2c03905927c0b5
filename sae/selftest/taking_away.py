"""Protections that `--break` takes away, so that a harness is seen to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from sae.base import files


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
        mock.patch.object(saved, "sha256_of", return_value=Anything()),
    ):
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
    """Ranks meet and exchange, and none watches over the others."""
    from sae.base.watchdog import Watchdog

    nothing = {name: mock.DEFAULT for name in ("start", "fail", "check", "leave")}
    with mock.patch.multiple(Watchdog, **nothing):
        yield


TAKEN_AWAY: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no-hash": no_hash,
    "no-cap": no_cap,
    "no-guard": no_guard,
    "no-watchdog": no_watchdog,
}
"""What --break takes -> a context without that protection."""


def taken_away(broken: str | None) -> contextlib.AbstractContextManager[Any]:
    """A context without the protection; None keeps all."""
    return contextlib.nullcontext() if broken is None else TAKEN_AWAY[broken]()
