"""Work in child processes that may take little more memory and time, and may die, without harm to this one."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

MEMORY = 1 << 30  # bytes above what this process has
SECONDS = 20.0
PER_CHILD = 500


class TooSlow(BaseException):
    """An input took longer than it may."""


class Verdict(NamedTuple):
    """What became of one number."""

    number: int
    result: Any
    """What the job returned, as JSON; None where the child died."""
    died: str
    """Why the child died; empty where it did not."""
    memory: int
    """The most bytes that the child had taken so far beyond those at its start."""


def confined(
    job: Callable[[int], Any], numbers: Sequence[int], *, memory: int = MEMORY, seconds: float = SECONDS
) -> Iterator[Verdict]:
    """`job(number)` for every number, in children that this process forks.

    Args:
        job: returns JSON values. In a child, memory beyond the limit is a MemoryError, time beyond it a `TooSlow`.
        numbers: which.
        memory: bytes.
        seconds: for one number.
    """
    left = list(numbers)
    while left:
        batch = left[:PER_CHILD]
        done = 0
        for verdict in _in_child(job, batch, memory, seconds):
            yield verdict
            done += 1
        left = left[done:]


def _in_child(job: Callable[[int], Any], batch: list[int], memory: int, seconds: float) -> Iterator[Verdict]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(job, batch, writing, memory, seconds)
    os.close(writing)
    index, killed, ended = 0, False, False
    try:
        with open(reading, "rb", buffering=0) as stream:
            rest = b""
            while not ended:
                # a child in the midst of C code gets no signal: it is killed
                if not select.select([stream], [], [], 2 * seconds)[0]:
                    os.kill(child, signal.SIGKILL)
                    killed = True
                piece = stream.read(1 << 16)
                ended = not piece
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    result, grown = json.loads(line)
                    yield Verdict(batch[index], result, "", grown)
                    index += 1
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if index < len(batch) and status:
        number = -os.waitstatus_to_exitcode(status)
        reason = f"took more than {2 * seconds:g} s" if killed else f"died of {_signal(number)}"
        yield Verdict(batch[index], None, reason, 0)


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"exit status {-number}"


def _work(job: Callable[[int], Any], batch: list[int], writing: int, memory: int, seconds: float) -> None:
    """The child: never returns."""
    try:
        faulthandler.disable()  # the parent reports a crash
        torch.set_num_threads(1)  # the threads of the parent are not in the child
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        limit = _virtual_bytes() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        begun = _resident_bytes()

        interrupted = False

        def too_slow(signum: int, frame: object) -> None:
            nonlocal interrupted
            interrupted = True
            raise TooSlow(f"took more than {seconds:g} s")

        signal.signal(signal.SIGALRM, too_slow)
        for number in batch:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                result = job(number)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(writing, json.dumps([result, _resident_bytes() - begun]).encode() + b"\n")
            if interrupted:
                break  # what was cut short may still have its memory; the numbers that are left get a new child
        os._exit(0)
    except BaseException:
        os._exit(3)


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def _resident_bytes() -> int:
    """The most memory that this process has had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
