"""A lease on what several machines may write: an object that says who writes.

lease = Lease(objects, "part-000.lease.json", "writing this part of the store")
lease.take()
lease.renew()       # before every write
lease.release()
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from typing import Any, Protocol

from sae.base.objects import Objects, StorageError
from sae.config import ConfigError

LEASE_SECONDS = 900.0
"""After this time without renewal a lease is taken over."""


class Removing(Objects, Protocol):
    """Objects that can be deleted."""

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        ...


class Lease:
    """An object that says who writes, made where there is none: storage that refuses to overwrite lets one in.

    S3 and GCS do. It is renewed before every write, and taken over LEASE_SECONDS after the last renewal, or at once
    where its owner was a process of this machine that has ended. A writer that was paused for so long finds another's
    token and stops before it writes.
    """

    def __init__(self, objects: Removing, name: str, what: str) -> None:
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
