"""Ends every rank of a job soon after one of them died, was stopped, hangs or raised, and says which one it was.

Every rank writes a record of itself each second into the store that the launcher keeps (a `TCPStore`), from a thread
that goes on while the main thread computes. The first rank reads all records and writes the verdict; the others read
the first one's record and the verdict, so a second costs the store three requests a rank. Whoever reads the verdict
prints it and leaves with status 1.

A rank is lost where
    its process is gone or stopped, as /proc says on the same machine;
    its record does not change for `SILENT` seconds, or its own patience if that is longer (see `Pulse`);
    its main thread has made no step for longer than its patience, and does not wait for another rank;
    it raised an error;
    all ranks wait for one another.
Seconds are those in which the watching process itself ran, so a job that is suspended as a whole goes on unharmed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from sae.base.guard import Guard
from sae.base.pulse import PULSE

TICK = 1.0  # seconds between two records
SILENT = 10  # ticks
GONE = 2  # ticks for which a process must be gone: one that leaves in good order says so first
AT_MOST = 8  # ranks that a message lists
PACKAGE = str(Path(__file__).parent.parent)
PLUMBING = ("ranks.py", "watchdog.py", "guard.py", "pulse.py")  # what a message about a place leaves out


class RankError(RuntimeError):
    """Another rank of the job was lost; the message names it, its machine, its process and its last line."""

    exit_status = 1


class Record(NamedTuple):
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    tick: int = 0
    beats: int = 0
    idle: int = 0
    """Ticks since the last beat."""
    patience: float = 0.0
    """Seconds that `idle` may reach."""
    waits: bool = False
    """Whether the main thread is in an exchange with other ranks."""
    left: bool = False
    said: str = ""
    where: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def stalled(self) -> bool:
        """Whether no step was made for longer than one may take."""
        return not self.left and self.idle > self.patience


class Verdict(NamedTuple):
    """Which rank was lost, and how."""

    rank: int
    host: str
    pid: int
    kill: bool
    """Whether its process cannot leave by itself."""
    message: str


def judge(records: Mapping[int, Record], unchanged: Mapping[int, int], states: Mapping[int, str]) -> Verdict | None:
    """The rank that was lost, if one was.

    Args:
        records: the last record of each rank.
        unchanged: for how many ticks each record has been the same.
        states: of each rank's process, see `_process_state`; "" on another machine.
    """
    present = [record for record in records.values() if not record.left]
    for record in present:
        if states[record.rank] in _DEAD and unchanged[record.rank] >= GONE:
            return _verdict(record, "died", kill=False)
    for record in present:
        silent = unchanged[record.rank]
        if states[record.rank] == _STOPPED and silent > SILENT:
            return _verdict(record, f"was stopped {silent} s ago", kill=True)
        if silent > max(SILENT, record.patience):
            return _verdict(record, f"has given no sign for {silent} s", kill=True)
    stalled = [record for record in present if record.stalled]
    busy = sorted((r for r in stalled if not r.waits), key=lambda record: (record.beats, -record.idle))
    if busy:
        return _verdict(busy[0], f"has made no progress for {busy[0].idle} s", kill=False)
    if present and len(stalled) == len(present) and all(r.idle > 2 * r.patience for r in present):
        places = "; ".join(f"rank {record.rank} in {record.where}" for record in present[:AT_MOST])
        worst = min(present, key=lambda record: record.beats)
        return _verdict(worst, f"and all others wait for one another for {worst.idle} s ({places})", kill=False)
    return None


def _verdict(record: Record, what: str, *, kill: bool) -> Verdict:
    place = f" in {record.where}" if record.where else ""
    message = f"{record.name} {what}{place}; it last said: {record.said}"
    return Verdict(record.rank, record.host, record.pid, kill, message)


class Watchdog:
    """Watches over this rank and, in the first rank, over all.

    Args:
        store: a client of the job's store that nothing else in this process uses.
        rank, world: of this process.
        guard: of this process; stops with the watchdog.
    """

    def __init__(self, store: Any, rank: int, world: int, guard: Guard) -> None:
        self._store, self._rank, self._world, self._guard = store, rank, world, guard
        self._record = Record(rank, socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._beats, self._idle = PULSE.beats, 0
        self._seen: dict[int, Record] = {}
        self._unchanged: dict[int, int] = {}
        self._states: dict[int, str] = {}
        self._leaving, self._over = threading.Event(), threading.Event()
        self._verdict: Verdict | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._write(self._record)

    def start(self) -> None:
        """Begin to watch; every rank of the job has written its first record."""
        self._thread.start()

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one raised `error`, and stop watching."""
        self._leaving.set()
        self._over.set()
        text = str(error).strip().splitlines()[:1]
        said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        self._announce(_verdict(self._now(), f"raised {said}", kill=False))
        self._thread.join()
        self._guard.stop()

    def check(self, seconds: float) -> None:
        """Wait for a verdict, which may explain what went wrong in this rank.

        Raises:
            RankError: another rank was lost.
        """
        self._leaving.set()
        self._over.wait(seconds)
        if self._verdict is not None:
            raise RankError(self._says(self._verdict))

    def leave(self) -> None:
        """This rank is done; the first one waits for the others, so that a rank that hangs at the end is noticed.

        Raises:
            RankError: another rank was lost meanwhile.
        """
        self._leaving.set()
        if self._rank == 0:
            self._over.wait()
        elif not self._over.is_set():
            self._write(self._now()._replace(left=True))
            self._over.set()
        self._thread.join()
        self._guard.stop()
        self.check(0)

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            try:
                verdict = self._look()
                self._guard.expect_answer()
            except RuntimeError as error:  # the store's own errors
                why = f"the launcher's store was lost ({_first_line(error)})"
                verdict = Verdict(self._rank, self._record.host, self._record.pid, False, why)
            if self._over.is_set():
                return
            if verdict is not None:
                self._end(verdict)

    def _look(self) -> Verdict | None:
        self._idle = 0 if self._beats != PULSE.beats else self._idle + 1
        self._beats = PULSE.beats
        self._record = self._now()
        self._write(self._record)
        if self._store.check(["verdict"]):
            return Verdict(*json.loads(self._store.get("verdict")))
        watched = range(self._world) if self._rank == 0 else [0]
        for rank, text in zip(watched, self._store.multi_get([key_of(rank) for rank in watched]), strict=True):
            record = Record(*json.loads(text))
            same = self._seen.get(rank) == record
            self._unchanged[rank] = self._unchanged.get(rank, 0) + 1 if same else 0
            self._seen[rank] = record
            self._states[rank] = _process_state(record.pid) if record.host == self._record.host else ""
        if self._rank == 0:
            if all(record.left for rank, record in self._seen.items() if rank != 0) and self._leaving.is_set():
                self._over.set()
                return None
            verdict = judge(self._seen, self._unchanged, self._states)
        else:
            # a first rank that hangs but still watches judges itself
            first = self._seen[0]._replace(idle=0)
            verdict = judge({0: first}, self._unchanged, self._states)
        return None if verdict is None else self._announce(verdict)

    def _now(self) -> Record:
        frame = sys._current_frames().get(self._main or 0)
        where, waits = _place_of(frame)
        # the first rank waits at the end for the others, with nothing left to do
        waits = waits or self._leaving.is_set()
        return self._record._replace(
            tick=self._record.tick + 1, beats=self._beats, idle=self._idle, patience=PULSE.patience, waits=waits,
            said=PULSE.line, where=where,
        )  # fmt: skip

    def _write(self, record: Record) -> None:
        self._store.set(key_of(record.rank), json.dumps(record))

    def _announce(self, verdict: Verdict) -> Verdict:
        """The first verdict of the job, which is this one unless another rank was quicker."""
        return Verdict(*json.loads(self._store.compare_set("verdict", "", json.dumps(verdict))))

    def _end(self, verdict: Verdict) -> None:
        """Leave with the verdict: by the main thread if it is on its way out, else at once."""
        self._verdict = verdict
        here = verdict.host == self._record.host and verdict.rank != self._rank
        if verdict.kill and here and _parent_of(verdict.pid) == self._guard.launcher:
            # a stopped process answers no signal but this one, and torchrun waits 30 s before it sends it
            os.kill(verdict.pid, signal.SIGKILL)
        self._over.set()
        if not self._leaving.is_set():
            # one write, so that the lines of several ranks do not mix
            os.write(2, f"error: {self._says(verdict)}\n".encode())
            os._exit(RankError.exit_status)

    def _says(self, verdict: Verdict) -> str:
        return f"rank {self._rank} ends, because {verdict.message}"


def key_of(rank: int) -> str:
    """Where a rank's record stands in the store."""
    return f"rank/{rank}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _place_of(frame: FrameType | None) -> tuple[str, bool]:
    """File, line and function of the innermost call in this package; whether torch.distributed is below it."""
    waits = False
    while frame is not None:
        path = frame.f_code.co_filename
        waits |= "/torch/distributed/" in path
        if path.startswith(PACKAGE) and Path(path).name not in PLUMBING:
            return f"sae{path.removeprefix(PACKAGE)}:{frame.f_lineno} ({frame.f_code.co_name})", waits
        frame = frame.f_back
    return "", waits


_DEAD = ("gone", "Z", "X")
"""States of a process: there is none, a zombie, dead."""
_STOPPED = "T"


def _process_state(pid: int) -> str:
    """The letter of /proc/PID/stat; "gone" without such a process, "" where the system has no /proc."""
    stat = _stat_of(pid)
    return stat[0] if stat else ("gone" if Path("/proc/self/stat").exists() else "")


def _parent_of(pid: int) -> int:
    stat = _stat_of(pid)
    return int(stat[1]) if stat else -1


def _stat_of(pid: int) -> list[str]:
    try:
        # the name of the program may hold spaces and brackets
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
