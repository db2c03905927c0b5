"""Which rank the watchdog takes for lost, how long a step may take, and a rank that never comes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import forked
from sae.base import process_group, ranks, watchdog
from sae.base.launcher import LAUNCHED
from sae.base.pulse import Pulse, seconds_from
from sae.base.ranks import Ranks
from sae.base.watchdog import SILENT, RankError, Record, Verdict, judge
from sae.config import ConfigError
from sae.selftest.forked_ranks import launch


def record(rank: int, **changes: object) -> Record:
    at_work = Record(rank, "here", 100 + rank, beats=50, patience=15.0, said=f"step 5{rank}", where="sae/x.py:1 (f)")
    return at_work._replace(**changes)  # type: ignore[arg-type]


def verdict(*records: Record, silent: dict[int, int] | None = None, states: dict[int, str] | None = None) -> str:
    ranks = {r.rank: r for r in records}
    quiet = dict.fromkeys(ranks, 0) | (silent or {})
    result = judge(ranks, quiet, dict.fromkeys(ranks, "R") | (states or {}))
    return "" if result is None else result.message


def test_ranks_at_work_are_left_alone() -> None:
    assert not verdict(record(0), record(1, idle=14), record(2, waits=True, idle=500))
    assert not verdict(record(0), record(1), silent={1: SILENT})
    assert not verdict(record(0), record(1, left=True, idle=900), silent={1: 900}, states={1: "gone"})
    # writes a checkpoint, and holds the interpreter meanwhile
    assert not verdict(record(0), record(1, patience=600.0), silent={1: 500})


def test_the_lost_rank_is_named_with_its_last_line() -> None:
    died = verdict(record(0, waits=True), record(1), silent={1: 2}, states={1: "Z"})
    assert died == "rank 1 (here, process 101) died in sae/x.py:1 (f); it last said: step 51"
    assert verdict(record(0), record(1), silent={1: 11}, states={1: "T"}).startswith(
        "rank 1 (here, process 101) was stop"
    )
    assert "has given no sign for 16 s" in verdict(record(0), record(1), silent={1: 16}, states={1: ""})
    assert verdict(record(0, waits=True, idle=40), record(1, idle=16), record(2, waits=True, idle=40)).startswith(
        "rank 1 (here, process 101) has made no progress for 16 s in sae/x.py:1 (f)"
    )


def test_of_two_stalled_ranks_the_one_behind_is_named() -> None:
    """GPU ranks wait for each other in kernels, where the main thread is in no exchange."""
    assert verdict(record(0, idle=20), record(1, idle=19, beats=49)).startswith("rank 1 ")


def test_ranks_that_all_wait_are_noticed() -> None:
    waiting = [record(rank, waits=True, idle=31) for rank in range(2)]
    assert "wait for one another for 31 s (rank 0 in sae/x.py:1 (f); rank 1 in" in verdict(*waiting)
    assert not verdict(waiting[0], waiting[1]._replace(idle=29))


def test_a_stopped_process_is_killed_and_a_dead_one_is_not() -> None:
    states, silent = {0: "R", 1: "T"}, {0: 0, 1: SILENT + 1}
    stopped = judge({0: record(0), 1: record(1)}, silent, states)
    assert isinstance(stopped, Verdict)
    assert stopped.kill
    dead = judge({0: record(0), 1: record(1)}, silent, {0: "R", 1: "gone"})
    assert isinstance(dead, Verdict)
    assert not dead.kill


def test_the_state_of_a_process_is_read_from_proc() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert watchdog._process_state(process.pid) in ("S", "R", "D")
        assert watchdog._parent_of(process.pid) == os.getpid()
        process.send_signal(19)
        deadline = time.monotonic() + 10
        while watchdog._process_state(process.pid) != "T":
            assert time.monotonic() < deadline
    finally:
        process.kill()
    process.wait()
    assert watchdog._process_state(process.pid) == "gone"


def test_a_step_may_take_as_long_as_its_loop_has_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pulse = Pulse()
    assert pulse.patience == 600
    pulse.begin(lambda: f"at {clock[0]:.0f}")
    for seconds in (100.0, 2.0, 1.0):
        assert pulse.patience == 600, "the first steps compile"
        clock[0] += seconds
        pulse.beat()
    assert (pulse.patience, pulse.line) == (20.0, "at 103")
    with pulse.without_steps("Writing the checkpoint."):
        assert (pulse.patience, pulse.line) == (600.0, "Writing the checkpoint.")
        clock[0] += 50
    clock[0] += 1
    pulse.beat()
    assert pulse.patience == 20.0, "a checkpoint is no step"
    pulse.end()
    assert pulse.patience == 600
    monkeypatch.setenv("SAE_RANKS_WAIT", "7")
    assert pulse.patience == 7


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_wrong_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_RANKS_PATIENCE", text)
    with pytest.raises(ConfigError, match=f"SAE_RANKS_PATIENCE={text}: expected a number of seconds over 0"):
        seconds_from("SAE_RANKS_PATIENCE", 15)


def test_a_launcher_that_has_gone_before_the_ranks_meet_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))  # nobody listens there
        for name, value in zip(LAUNCHED, ("1", "1", "127.0.0.1", str(gone.getsockname()[1])), strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setattr(process_group, "TO_LAUNCHER", 1.0)
        begun = time.monotonic()
        with pytest.raises(RankError, match=r"rank 1: the job's store at 127\.0\.0\.1:.* cannot be reached"):
            process_group.meet(3)
    assert time.monotonic() - begun < 30  # not the 600 s that ranks wait for each other


LISTENS = """
import os, socket
from sae.base import process_group
server = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers, like a machine without power
os.environ |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": str(server.getsockname()[1]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
process_group.TO_LAUNCHER = process_group.UNANSWERED = 1.0
process_group.meet(3)
"""


def test_a_launcher_that_does_not_answer_ends_the_rank() -> None:
    ended = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "rank 1" in ended.stderr


ORPHAN = """
import os, time
from sae.base.guard import Guard
os.environ |= {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
if os.fork() == 0:
    Guard()
    time.sleep(60)
    print("still there")
time.sleep(1)
"""


def test_a_launcher_that_goes_ends_the_rank() -> None:
    begun = time.monotonic()
    # returns when the last process that holds its output has ended
    ended = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == "error: rank 2 ends, because the launcher has gone\n"
    assert ended.stdout == ""
    assert time.monotonic() - begun < 30


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in zip(LAUNCHED, ("0", "0", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("SAE_RANKS_WAIT", "1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    process_group._server.cache_clear()
    with (
        pytest.raises(RankError, match=r"only 1 of 3 ranks have come within 1 s; missing: 1, 2. See"),
        Ranks.of_process(),
    ):
        pass
    process_group._server.cache_clear()


def lose_rank_one(moment: str) -> None:
    """In one of three ranks: the second is lost; rank 0 gets SIGTERM, as from torchrun, at a moment of its way out."""

    def terminated(function):
        def call(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments)

        return call

    try:
        with Ranks.of_process("cpu") as group:
            group.gather(0)
            if group.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if group.rank == 0 and moment == "the error is looked at":
                ranks._in_exchange = terminated(ranks._in_exchange)
            if group.rank == 0 and moment == "the verdict is awaited":
                watchdog.Watchdog.check = terminated(watchdog.Watchdog.check)
            try:
                group.gather(1)
            finally:
                if group.rank == 0 and moment == "the error is raised":
                    os.kill(os.getpid(), signal.SIGTERM)
    except RankError as error:  # as the command line does
        sys.exit(f"error: {error}")


@pytest.mark.parametrize("moment", ["the error is raised", "the error is looked at", "the verdict is awaited"])
def test_a_rank_that_is_terminated_on_its_way_out_still_names_the_one_that_was_lost(moment: str) -> None:
    job = forked.finished(forked.Forked(launch, 3, lose_rank_one, moment), 60)
    named = re.findall(r"rank (\d+) ends, because rank (\d+) \(", job.stderr)
    assert sorted(set(named)) == [("0", "1"), ("2", "1")], job.stderr
