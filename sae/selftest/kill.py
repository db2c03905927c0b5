"""SIGKILL at a random moment, then resume: nothing is lost, repeated, or different by one bit.

Half of the kills come after a random time, half at a random operation on the disk, before it or in the middle of it. A
quarter of the resumed commands are killed again.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sae.base.threads import usable_cpus
from sae.selftest.children import Children, Ended, Fault, Job
from sae.selftest.harness import Outcome, Task
from sae.selftest.unbroken import Unbroken, check_published, commands, fingerprints, prepared, run_unbroken

AGAIN = 0.25  # of the resumed commands are killed too
HOW = ("kill", "half")


class Moment(NamedTuple):
    """When a command is killed."""

    seconds: float | None
    fault: Fault | None

    @classmethod
    def drawn(cls, draw: random.Random, unbroken: Ended) -> Moment:
        """A time up to that which the unbroken command takes, or one of its operations."""
        if draw.random() < 0.5:
            return cls(draw.uniform(0, unbroken.seconds), None)
        return cls(None, Fault(draw.randrange(len(unbroken.operations)), draw.choice(HOW)))

    def __str__(self) -> str:
        if self.fault is None:
            return f"after {self.seconds:.3f} s"
        return f"{'at' if self.fault.how == 'kill' else 'in'} operation {self.fault.at}"


def run(task: Task) -> Outcome:
    """Kill commands of the toy world, each in its turn."""
    children = Children()
    unbroken = run_unbroken(task.folder.absolute() / "unbroken", commands(task.world), children)
    return killed(task, children, unbroken, list(unbroken))


def killed(task: Task, children: Children, unbroken: Mapping[str, Unbroken], names: Sequence[str]) -> Outcome:
    """`task.n` kills of the commands `names` by turns, on every CPU."""
    room = task.folder.absolute()
    counts: Counter[str] = Counter()
    failures: list[str] = []

    def trial(number: int) -> tuple[str, list[str], str]:
        draw = random.Random(f"{task.seed} {number}")
        of = unbroken[names[number % len(names)]]
        folder = room / f"{number:05d}"
        story: list[str] = []
        wrong = _kill_and_resume(prepared(folder, of.command, unbroken), of, children, draw, task.broken, story)
        if wrong and task.keep is not None:
            shutil.copytree(folder, task.keep / f"{number:05d}-{of.command.name}")
        shutil.rmtree(folder)
        return of.command.name, story, wrong

    with ThreadPoolExecutor(usable_cpus()) as pool, task.progress.bar("kill", task.n, "commands") as bar:
        for number, (name, story, wrong) in enumerate(pool.map(trial, range(task.n))):
            counts[name] += 1
            counts["kills"] += len([part for part in story if part.startswith("killed")])
            if wrong:
                failures.append(f"{number}: {name} {', '.join(story)}: {wrong}")
            bar.advance(1)
    return Outcome(task.n, tuple(failures), dict(counts))


def _kill_and_resume(
    folder: Path, of: Unbroken, children: Children, draw: random.Random, broken: str | None, story: list[str]
) -> str:
    """What went wrong, or nothing; `story` gets what was done."""
    arguments: tuple[str, ...] | None = of.command.begin
    moments = [Moment.drawn(draw, of.ended)]
    if draw.random() < AGAIN:
        moments.append(Moment.drawn(draw, of.ended))
    for moment in moments:
        ended = children.run(Job(folder, arguments, moment.fault, broken), kill_after=moment.seconds)
        if ended.status is not None:
            # a resumed command has less to do than an unbroken one: its end may come before the kill
            return finished(ended, folder, of)
        story.append(f"killed {moment}")
        if wrong := attempted(lambda: check_published(folder)):
            return wrong
        if (arguments := of.command.resume(folder)) is None:
            return compared(folder, of, None)
    return finished(children.run(Job(folder, arguments, None, broken)), folder, of)


def finished(ended: Ended, folder: Path, of: Unbroken) -> str:
    """Compare what a command left that came to its end."""
    if ended.status != 0:
        return f"exit status {ended.status}: {ended.said.strip()[-600:]}"
    return compared(folder, of, ended)


def compared(folder: Path, of: Unbroken, ended: Ended | None) -> str:
    """What differs from the unbroken command: a part of its content, a batch, a file left over."""
    if ended is not None:
        for name, digest in ended.batches.items():
            if of.ended.batches.get(name) != digest:
                return f"another batch: {name}"
    made: dict[str, str] = {}
    if wrong := attempted(lambda: made.update(fingerprints(of.command, folder))):
        return wrong
    for name in sorted({*made, *of.content}):
        if made.get(name) != of.content.get(name):
            return f"{name} differs"
    left = [str(path.relative_to(folder)) for path in folder.rglob(".partial-*")]
    return f"left over: {', '.join(left)}" if left else ""


def attempted(work: Callable[[], None]) -> str:
    """The error of a piece of work, or nothing."""
    try:
        work()
    except (ValueError, OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
