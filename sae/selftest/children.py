"""Commands of `sae` in processes of their own, forked from one that has imported everything and computed nothing.

    ended = Children().run(Job(folder, ("train", ...)), kill_after=0.2)

A child sees every operation on the disk as it happens, and fails or kills itself at the one that its `Fault` names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from sae.base.disk import Operation, observed

LIMIT = 180.0  # seconds after which a child hangs
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # a killed child leaves semaphores, which the tracker removes in the end
    "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
}
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


class Fault(NamedTuple):
    """What goes wrong at one operation on the disk."""

    at: int
    """Number of the operation in its process, from 0."""
    how: str
    """kill (before it), half (a write of half of the bytes, then a kill), or a key of ERRORS (in its place)."""


class Job(NamedTuple):
    """One command."""

    folder: Path
    """Where it runs."""
    arguments: tuple[str, ...]
    """Of the command `sae`."""
    fault: Fault | None = None
    broken: str | None = None
    """A protection that is taken away, a key of `sae.selftest.taking_away.TAKEN_AWAY`."""


class Ended(NamedTuple):
    """How a child ended."""

    status: int | None
    """Exit status of the command; None where it was killed."""
    operations: list[tuple[str, str]]
    """Kind and path of every operation; empty where it was killed."""
    said: str
    """Standard error."""
    batches: dict[str, str]
    """Trainer and step -> hash of the batch; empty where it was killed."""
    seconds: float
    """From the command's beginning to the end of the process."""


class RunningTime:
    """Seconds in which this process ran, since it was made: time for which all was suspended does not count."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def __call__(self) -> float:
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, 1.0), now
        return self._seconds


class Children:
    """A process to fork from, and the children forked from it. Several threads may use it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["sae.selftest.warm"])
        # equal bits need equal threads, and a fork must not copy a pool of them
        with mock.patch.dict(os.environ, ENVIRONMENT):
            forkserver.ensure_running()

    def run(self, job: Job, *, kill_after: float | None = None) -> Ended:
        """Run a command to its end, or kill it after so many seconds.

        Raises:
            RuntimeError: it hangs, or ended without a word though nobody killed it.
        """
        here, there = self._context.Pipe()
        process = self._context.Process(target=_child, args=(there, job), daemon=True)
        process.start()
        there.close()
        try:
            begun = self._answer(here, process, job)
            if begun is None:
                raise RuntimeError(f"{' '.join(job.arguments)}: the process ended before it began")
            start = time.perf_counter()
            if kill_after is not None and not here.poll(kill_after):
                process.kill()
            answer = self._answer(here, process, job)
            process.join(LIMIT)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.join()
            here.close()
        if answer is None:
            if process.exitcode != -signal.SIGKILL:
                said = (job.folder / "stderr").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(job.arguments)}: ended with {process.exitcode}: {said}")
            return Ended(None, [], "", {}, seconds)
        return Ended(*answer, seconds=seconds)

    def fork(self, target: Callable[..., None], *arguments: Any) -> Any:
        """A started process of `target`, which may have children of its own."""
        process = self._context.Process(target=target, args=arguments)
        process.start()
        return process

    def _answer(self, connection: Connection, process: Any, job: Job) -> Any:
        """What the child sends next; None where it ends without sending anything."""
        clock = RunningTime()
        while not connection.poll(0.5):
            if clock() > LIMIT:
                process.kill()
                raise RuntimeError(f"{' '.join(job.arguments)}: hangs (no answer for {LIMIT:.0f} s)")
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            process.join(LIMIT)
            return None


def _child(connection: Connection, job: Job) -> None:
    """In the child: run the command, and say how it ended."""
    from sae.selftest.taking_away import taken_away

    os.chdir(job.folder)
    with open("stderr", "w") as stream:
        os.dup2(stream.fileno(), 2)
    operations: list[tuple[str, str]] = []
    batches: dict[str, str] = {}
    said = io.StringIO()
    connection.send("begun")
    with (
        taken_away(job.broken),
        _small_parts(),
        _watched_batches(batches),
        observed(fault_observer(job.fault, operations)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        status = command_status(job.arguments)
    connection.send((status, operations, said.getvalue(), batches))
    connection.close()


def command_status(arguments: tuple[str, ...]) -> int:
    """Exit status of `python -m sae`."""
    try:
        with mock.patch.object(sys, "argv", ["sae", *arguments]):
            runpy.run_module("sae", run_name="__main__")
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:  # a bug, whose traceback the parent is to see
        import traceback

        traceback.print_exc(file=sys.stderr)
        return 70
    return 0


def kill_process() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def fault_observer(
    fault: Fault | None, operations: list[tuple[str, str]], kill: Callable[[], None] = kill_process
) -> Callable[[Operation, Callable[[], None]], None]:
    """Adds kind and path of each operation to `operations`, and lets the fault happen; `kill` does its killing."""

    def observe(operation: Operation, perform: Callable[[], None]) -> None:
        number = len(operations)
        operations.append((operation.kind, str(operation.path)))
        if fault is None or number != fault.at:
            perform()
        elif fault.how in ERRORS:
            code = ERRORS[fault.how]
            raise OSError(code, os.strerror(code), str(operation.path))
        elif fault.how == "half" and operation.kind in ("write", "append"):
            _half(operation, perform, kill)
        else:
            kill()
            perform()  # where `kill` was of another process

    return observe


def _half(operation: Operation, perform: Callable[[], None], kill: Callable[[], None]) -> None:
    """Write a half of the bytes and kill; where a library writes into a folder, kill while it does."""
    path = operation.path
    if path.is_dir():
        threading.Timer(0.003, kill).start()
        perform()
        threading.Event().wait(1)
        return
    before = path.stat().st_size if path.exists() else 0
    perform()
    os.truncate(path, before + (path.stat().st_size - before) // 2)
    kill()


@contextlib.contextmanager
def _small_parts() -> Iterator[None]:
    """Parts so small that a run of a second writes several: shards, partial collections, batches of names."""
    from sae.features.collect import collect
    from sae.features.explain import work
    from sae.harvest import store

    with (
        mock.patch.object(store, "SHARD_ROWS", 1024),
        mock.patch.object(collect, "SHARE", 0),
        mock.patch.dict(work.BATCH, rules=16),
    ):
        yield


@contextlib.contextmanager
def _watched_batches(batches: dict[str, str]) -> Iterator[None]:
    """Note the hash of every batch that a trainer of this process takes a step on."""
    from sae.training.trainer import Trainer

    step = Trainer.step

    def watched(self: Trainer, x: Any, *others: Any, **more: Any) -> Any:
        name = f"{self.model.code.describe()} step {self.taken + 1}"
        batches[name] = hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return step(self, x, *others, **more)

    with mock.patch.object(Trainer, "step", watched):
        yield
