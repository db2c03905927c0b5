"""A rank that dies, stops, raises or hangs: every rank ends within 30 s and names it, none is left, the job resumes."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from sae.config import CollectConfig, EvalConfig
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.features.store.writer import STORE
from sae.models.saved import WEIGHTS
from sae.selftest.children import Children, RunningTime
from sae.selftest.content import fingerprint
from sae.selftest.forked_ranks import alive, launch
from sae.selftest.harness import Outcome, Task
from sae.selftest.rank_job import run_rank
from sae.training.run import train

LIMIT = 30.0  # seconds from the fault to the end of the last rank
TOO_LONG = 300.0  # of a job, with its start
FAULTS = ("kill", "stop", "raise", "hang")
WORLDS = {"train": (2, 4), "features": (2, 3), "eval": (2, 3)}
"""Command that is broken -> numbers of ranks; a batch of training has to divide by its one."""
TOKENS = 8_192
EVALUATION = EvalConfig(tokens=TOKENS, downstream_tokens=1_024, pca_tokens=2_048, resamples=20)
FLAGS = {
    "features": {"tokens": TOKENS, "save-every": 0},
    "eval": {
        name.replace("_", "-"): getattr(EVALUATION, name)
        for name in ("tokens", "downstream_tokens", "pca_tokens", "resamples")
    },
}


class Job(NamedTuple):
    """A job that was started and is over."""

    status: int
    said: str
    """Its stderr."""
    seconds: float | None
    """From the fault to the end of the last rank; None where the fault did not come."""
    left: list[int]
    """Ranks whose process is still there."""


def run(task: Task) -> Outcome:
    """Start jobs, break one rank of each, and let each resume."""
    draw, children = random.Random(task.seed), Children()
    with _quiet():
        train(task.world.config(task.folder / SOURCE))
    unbroken: dict[tuple[str, int], Unbroken] = {}
    counts: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    with task.progress.bar("ranks", task.n, "jobs") as bar:
        for number in range(task.n):
            name, fault = draw.choice(list(WORLDS)), FAULTS[number % len(FAULTS)]
            world = draw.choice(WORLDS[name])
            # results of training alone depend on the number of ranks, in their last bits
            kind = (name, world if name == "train" else 2)
            if kind not in unbroken:
                unbroken[kind] = _unbroken(task, children, *kind)
            told = {
                "fault": fault, "rank": draw.randrange(world), "delay": draw.random() / 4, "broken": task.broken,
                "beat": draw.randrange(2, max(3, unbroken[kind].beats * 2 // 3)),
            }  # fmt: skip
            folder = task.folder / str(number)
            job = _start(task, children, name, folder, world, told)
            trouble = _judge(job, told, folder)
            expected = unbroken[kind].result
            if not trouble and job.seconds is not None and _finish(task, children, name, folder, world) != expected:
                trouble = "what it wrote after resuming differs from the unbroken run's"
            counts[f"{name}: {fault}" if job.seconds is not None else "over before the fault"] += 1
            slowest = max(slowest, job.seconds or 0.0)
            if trouble:
                what = f"{number}: {name} on {world} ranks, {fault} of rank {told['rank']} at beat {told['beat']}"
                failures.append(f"{what}: {trouble}")
                _keep(task, number, job)
            shutil.rmtree(folder)
            bar.note(f"slowest end {slowest:.1f} s")
            bar.advance(1)
    return Outcome(task.n, tuple(failures), {**counts, "seconds of the slowest end, rounded up": int(slowest) + 1})


SOURCE = "source"
"""The finished run that is evaluated and whose features are collected."""


class Unbroken(NamedTuple):
    """A job without a fault."""

    result: str
    """Hash of what it wrote."""
    beats: int
    """Steps that its first rank took."""


def _unbroken(task: Task, children: Children, name: str, world: int) -> Unbroken:
    folder = task.folder / f"unbroken-{name}-{world}"
    job = _start(task, children, name, folder, world, {"broken": None})
    if job.status != 0:
        raise RuntimeError(f"{name} failed on {world} ranks without a fault:\n{job.said[-3000:]}")
    beats = int((folder / "beats-0").read_text())
    if name != "train":  # compared with a single process
        shutil.rmtree(folder)
        shutil.copytree(task.folder / SOURCE, folder / RUN)
    return Unbroken(_finish(task, children, name, folder, world), beats)


RUN = "run"


def _start(task: Task, children: Children, name: str, folder: Path, world: int, told: dict[str, Any]) -> Job:
    """Run a command in a folder, which is new or holds a broken run, until its ranks have ended or should have."""
    run, resume = folder / RUN, (folder / RUN / "config.json").exists()
    if name == "train":
        folder.mkdir(exist_ok=True)
        arguments = ["train", *task.world.arguments(), "--out", str(run), *(["--resume"] if resume else [])]
    else:
        shutil.copytree(task.folder / SOURCE, run)
        arguments = [name, str(run), *(f"--{flag}={value}" for flag, value in FLAGS[name].items())]
    for file in (*folder.glob("pid-*"), *folder.glob("beats-*"), *folder.glob("struck")):
        file.unlink()
    process = children.fork(_launch, folder, world, tuple(arguments), {**told, "folder": str(folder.resolve())})
    try:
        seconds = _wait(process, folder, world)
        left = [rank for rank, pid in enumerate(_pids(folder, world)) if alive(pid)]
    finally:
        _end(process, _pids(folder, world))
    return Job(process.exitcode, (folder / "said").read_text(errors="replace"), seconds, left)


def _launch(folder: Path, world: int, arguments: tuple[str, ...], told: dict[str, Any]) -> None:
    """In a forked process: be torchrun."""
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.exit(launch(world, run_rank, arguments, told))


def _wait(process: Any, folder: Path, world: int) -> float | None:
    """Seconds from the fault until the last rank had ended or had too long; None where no fault came."""
    clock = RunningTime()
    struck: float | None = None
    while clock() < (TOO_LONG if struck is None else struck + LIMIT + 5):
        if struck is None and (folder / "struck").exists():
            struck = clock()
        pids = _pids(folder, world)
        if len(pids) == world and not any(map(alive, pids)):
            break
        if process.exitcode is not None and struck is None:
            break
        time.sleep(0.05)
    ended = clock()
    process.join(10)
    return None if struck is None else ended - struck


def _judge(job: Job, told: dict[str, Any], folder: Path) -> str:
    """What is wrong with how a job ended; empty if nothing is."""
    if job.seconds is None:
        return "" if job.status == 0 else f"it failed before the fault: {job.said[-500:]}"
    if job.left:
        return f"{job.seconds:.0f} s after the fault ranks {job.left} are still there"
    if job.seconds > LIMIT:
        return f"the last rank ended after {job.seconds:.0f} s"
    if job.status == 0:
        return "exit status 0"
    pid = (folder / f"pid-{told['rank']}").read_text()
    named = re.findall(r"error: rank (\d+) ends, because rank (\d+) \(\S+, process (\d+)\)(.*)", job.said)
    if not named:
        return f"no rank said which one was lost: {job.said[-500:]}"
    wrong = [line for line in named if line[1:3] != (str(told["rank"]), pid)]
    if wrong:
        return f"another rank was named: {wrong[0]}"
    if any("it last said: " not in line[3] for line in named):
        return "the message lacks the last line"
    return ""


def _finish(task: Task, children: Children, name: str, folder: Path, world: int) -> str:
    """Run the command to its end, resuming what is there; a hash of what it wrote.

    Training goes on with as many ranks; the others in this process, whose results must be those of any number.
    """
    run = folder / RUN
    if name == "train":
        if not (run / WEIGHTS).exists():
            job = _start(task, children, name, folder, world, {"broken": None})
            if job.status != 0:
                return f"resuming failed: {job.said[-500:]}"
        return fingerprint(load_file(run / WEIGHTS))
    if name == "eval":
        with _quiet():
            report = evaluate(run, EVALUATION)
        # sums of another order differ in their last bits
        return fingerprint(_rounded({**report, "seconds": 0, "run": ""}))
    with _quiet():
        collect(run, CollectConfig(tokens=TOKENS, resume=(run / STORE).exists()))
    with contextlib.closing(sqlite3.connect(run / STORE)) as connection:
        tables = ("records", "documents", "events", "texts")
        return fingerprint({t: connection.execute(f"SELECT * FROM {t} ORDER BY id").fetchall() for t in tables})


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Without what a command tells a person."""
    return contextlib.redirect_stderr(io.StringIO())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _pids(folder: Path, world: int) -> list[int]:
    files = [folder / f"pid-{rank}" for rank in range(world)]
    return [int(text) for file in files if file.exists() and (text := file.read_text())]


def _end(process: Any, pids: list[int]) -> None:
    """End whatever is left of a job."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.join()


def _keep(task: Task, number: int, job: Job) -> None:
    if task.keep is not None:
        task.keep.mkdir(parents=True, exist_ok=True)
        (task.keep / f"{number}.txt").write_text(job.said)
