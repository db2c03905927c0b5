"""Jobs of several ranks under torchrun's agent, forked from the warm process of `Children`, and how they are killed.

    ended = run_job(children, RankJob(folder, ("train", ...), world=2, strike=Strike("rank", 1, beats=12)))

The launcher and its ranks are one process group. A strike comes at a number of steps or at an operation on the disk,
from within the rank it names, or after a time, from this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch.multiprocessing

from sae.base.disk import observed
from sae.base.pulse import PULSE
from sae.selftest.children import Children, Fault, RunningTime, command_status, fault_observer
from sae.selftest.taking_away import taken_away

LIMIT = 30.0  # seconds from the strike to the end of the last rank
TOO_LONG = 180.0  # of a job, with its start
Victim = Literal["job", "rank", "launcher"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)


class Strike(NamedTuple):
    """A SIGKILL and its moment: one of `beats`, `fault` and `seconds`."""

    victim: Victim
    """The launcher with all ranks, one rank, or the launcher alone."""
    rank: int
    """The one that is killed, or in which the moment is counted."""
    beats: int | None = None
    """Steps of progress bars of that rank, from its start."""
    fault: Fault | None = None
    """An operation on the disk of that rank; kill or half."""
    seconds: float | None = None
    """From the job's start."""

    def __str__(self) -> str:
        moment = f"after {self.seconds:.2f} s" if self.seconds is not None else f"at beat {self.beats}"
        if self.fault is not None:
            moment = f"{'before' if self.fault.how == 'kill' else 'in'} operation {self.fault.at}"
        return f"the {self.victim} {moment} of rank {self.rank}"


class RankJob(NamedTuple):
    """A command that several ranks run together."""

    folder: Path
    """Where it runs."""
    arguments: tuple[str, ...]
    """Of the command `sae`."""
    world: int
    """Number of ranks; 1 runs without a launcher."""
    strike: Strike | None = None
    broken: str | None = None
    """A protection that is taken away, a key of `sae.selftest.taking_away.TAKEN_AWAY`."""


class JobEnded(NamedTuple):
    """How a job ended."""

    struck: bool
    """Whether the strike came before the command was done."""
    status: int
    """Of the launcher, negative where a signal ended it."""
    seconds: float
    """From the strike, or else from the start, to the end of the last rank."""
    operations: int
    """On the disk by the first rank; 0 where it was killed."""
    beats: int
    """Of the first rank; 0 where it was killed."""
    said: str
    """Standard error of all."""
    left: list[int]
    """Ranks whose process had not ended `LIMIT` seconds after the strike; they were killed then."""


def run_job(children: Children, job: RankJob) -> JobEnded:
    """Run a job to its end or its strike, and wait until its last rank has ended."""
    notes = job.folder / NOTES
    notes.mkdir(exist_ok=True)
    for old in notes.iterdir():
        old.unlink()
    clock = RunningTime()
    launcher = children.fork(_launch, job)
    struck: float | None = None
    try:
        while clock() < TOO_LONG and (struck is None or clock() - struck < LIMIT):
            if struck is None and (notes / "struck").exists():
                struck = clock()
            after = None if job.strike is None else job.strike.seconds
            due = struck is None and after is not None and clock() > after
            if due and job.strike is not None and _strike_from_outside(job.strike, launcher.pid, notes):
                struck = clock()
            if not launcher.is_alive() and not _working(notes, job.world):
                break
            time.sleep(0.02)
        left = _working(notes, job.world)
        seconds = clock() - (struck or 0.0)
    finally:
        for pid in (*_pids(notes, job.world).values(), launcher.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.join()
    counts = (notes / "done-0").read_text().split() if (notes / "done-0").exists() else ("0", "0")
    struck_at_all = struck is not None or (notes / "struck").exists()
    said = (notes / "said").read_text(errors="replace") if (notes / "said").exists() else ""
    return JobEnded(struck_at_all, launcher.exitcode, seconds, int(counts[0]), int(counts[1]), said, left)


NOTES = "notes"
"""Folder in that of a job: which processes are its ranks, who was struck, who is done, what they said."""


def alive(pid: int) -> bool:
    """Whether the process does or could still do something; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _strike_from_outside(strike: Strike, launcher: int, notes: Path) -> bool:
    """Kill; False where the victim is not there yet, or was done already."""
    with contextlib.suppress(ProcessLookupError):
        if strike.victim == "rank":
            pid = _pids(notes, strike.rank + 1).get(strike.rank)
            if pid is None or not alive(pid) or (notes / f"done-{strike.rank}").exists():
                return False
            os.kill(pid, signal.SIGKILL)
        elif strike.victim == "job" and (notes / "group").exists():
            os.killpg(launcher, signal.SIGKILL)
        else:
            os.kill(launcher, signal.SIGKILL)
        return True
    return False


def _pids(notes: Path, world: int) -> dict[int, int]:
    """Rank -> its process, of those that have begun."""
    files = {rank: notes / f"pid-{rank}" for rank in range(world)}
    return {rank: int(text) for rank, file in files.items() if file.exists() and (text := file.read_text())}


def _working(notes: Path, world: int) -> list[int]:
    """Ranks that are not done; without its launcher one that is done waits for ever."""
    return [r for r, pid in _pids(notes, world).items() if alive(pid) and not (notes / f"done-{r}").exists()]


def _launch(job: RankJob) -> None:
    """In a forked process: be the launcher, or the only rank."""
    os.setsid()
    os.chdir(job.folder)
    notes = Path(NOTES)
    with (notes / "said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    (notes / "group").touch()
    if job.world == 1:
        _rank(job)
    sys.exit(launch(job.world, _rank, job))


def launch(world: int, function: Callable[..., None], *arguments: Any) -> int:
    """Be torchrun: run `function` in as many forked ranks under its agent; returns torchrun's exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, _as_subprocess)(function, arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _as_subprocess(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In a rank: what a process that torchrun starts gets from it, no signal if it dies and none of its sockets.

    A forked rank has the socket on which the launcher listens, which then stays open when the launcher has gone.
    """
    torch.multiprocessing._prctl_pr_set_pdeathsig(0)  # pyright: ignore[reportAttributeAccessIssue] - spawn.py sets it
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the listing's own
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                # the number stays taken, as copies of the launcher's objects still close it
                os.dup2(nothing, descriptor)
    function(*arguments)


def _rank(job: RankJob) -> None:
    """In a forked process: run the command as one rank."""
    rank, notes = int(os.environ.get("RANK", "0")), (job.folder / NOTES).absolute()
    (notes / f"pid-{rank}").write_text(str(os.getpid()))
    strike = job.strike if job.strike is not None and job.strike.rank == rank else None
    operations: list[tuple[str, str]] = []

    def kill() -> None:
        (notes / "struck").touch()
        victim = job.strike.victim if job.strike else "rank"
        if victim == "job" or job.world == 1:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid() if victim == "rank" else os.getppid(), signal.SIGKILL)

    if strike is not None and strike.beats is not None:
        _strike_at_beat(strike.beats, kill)
    fault = None if strike is None else strike.fault
    with taken_away(job.broken), observed(fault_observer(fault, operations, kill)):
        status = command_status(job.arguments)
    if status:
        sys.exit(status)
    (notes / f"done-{rank}").write_text(f"{len(operations)} {PULSE.beats}")
    if job.world == 1:
        sys.exit(0)


def _strike_at_beat(number: int, kill: Any) -> None:
    """Kill a moment after a step: a thread sends the signal, while the main one goes on."""
    beat, pending = PULSE.beat, [True]

    def trapped() -> None:
        beat()
        if pending and PULSE.beats >= number:
            pending.clear()
            threading.Thread(target=kill).start()

    PULSE.beat = trapped
