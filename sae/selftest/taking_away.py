"""Protections that `--break` takes away, so that a harness is seen to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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


TAKEN_AWAY: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {"no-hash": no_hash}
"""What --break takes -> a context without that protection."""


def taken_away(broken: str | None) -> contextlib.AbstractContextManager[None]:
    """A context without the protection; None keeps all."""
    return contextlib.nullcontext() if broken is None else TAKEN_AWAY[broken]()
