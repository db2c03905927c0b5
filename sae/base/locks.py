"""Locks that keep two processes from writing one thing, and tell the second who the first is.

    with locked(run, "features", "collecting the features of this run"):
        ...

The system releases the lock of a process that ends, however it ends: the next one takes it at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sae.config import ConfigError


@contextlib.contextmanager
def locked(folder: Path, name: str = "run", what: str = "writing to this folder") -> Iterator[None]:
    """Hold the lock `name` of a folder that exists: its files are NAME.lock and, while it is taken, NAME.pid.

    Raises:
        ConfigError: the folder cannot be written to, or another process has the lock; names its pid and machine.
    """
    check_writable(folder)
    owner = folder / f"{name}.pid"  # beside the lock: taking the lock empties its file
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process ({_owner(owner)}) is {what}") from None
    except PermissionError as error:
        raise ConfigError(f"{folder}: cannot be written to ({error.strerror}: {error.filename})") from error
    try:
        with contextlib.suppress(OSError):  # a courtesy to the second process; the lock holds without it
            owner.write_text(f"{os.getpid()} {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def check_writable(folder: Path, asked: str = "") -> None:
    """Refuse a folder in which no file can be made.

    Args:
        folder: where files are to be made.
        asked: begins the message where the user named another folder, such as `--out runs/a: `.

    Raises:
        ConfigError: it is missing, no folder, or may not be written to.
    """
    if not folder.is_dir():
        raise ConfigError(f"{asked}{folder}: {'a file; expected a folder' if folder.exists() else 'no such folder'}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{asked}{folder}: cannot be written to (its permissions, or a file system that is read-only)"
        )


def only_left_by_locks(folder: Path) -> bool:
    """Whether a folder holds nothing but what a process leaves that was killed before its first file was complete."""
    left = (path.suffix in (".lock", ".pid") or path.name.startswith(".partial-") for path in folder.iterdir())
    return all(left) and not any(path.is_symlink() for path in folder.iterdir())


def _owner(path: Path) -> str:
    try:
        pid, _, host = path.read_text().partition(" ")
    except OSError:  # the owner is about to write it, or to remove it
        return "pid unknown"
    return f"pid {pid}" if host in ("", socket.gethostname()) else f"pid {pid} on {host}"
