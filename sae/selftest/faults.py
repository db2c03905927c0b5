"""Every operation on the disk fails in turn: the old state stays whole, the error names the file, the command resumes.

A kill at each operation; ENOSPC in place of each that needs room; EIO in place of each, fsync among them.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sae.base.threads import usable_cpus
from sae.selftest.children import Children, Fault, Job
from sae.selftest.harness import Outcome, Task
from sae.selftest.kill import attempted, finished
from sae.selftest.unbroken import Unbroken, check_published, commands, prepared, run_unbroken

NEEDS_ROOM = ("make_folder", "write", "append", "commit", "rename")
STATUS = 1
"""Of a command that the disk failed."""


def run(task: Task) -> Outcome:
    """Fail every operation of every command in every way, or `task.n` of them drawn at random."""
    children = Children()
    unbroken = run_unbroken(task.folder.absolute() / "unbroken", commands(task.world), children)
    every = [(name, fault) for name, of in unbroken.items() for fault in faults_of(of)]
    return failed(task, children, unbroken, every)


def failed(
    task: Task, children: Children, unbroken: Mapping[str, Unbroken], every: Sequence[tuple[str, Fault]]
) -> Outcome:
    """Try all faults of commands by name, or `task.n` of them, on every CPU."""
    room = task.folder.absolute()
    tried = every if task.n >= len(every) else random.Random(task.seed).sample(every, task.n)
    counts: Counter[str] = Counter({"operations": sum(len(of.ended.operations) for of in unbroken.values())})
    failures: list[str] = []

    def trial(number: int) -> str:
        name, fault = tried[number]
        of, folder = unbroken[name], room / f"{number:05d}"
        prepared(folder, of.command, unbroken)
        job = Job(folder, of.command.begin, fault, task.broken)
        ended = children.run(job)
        path = of.ended.operations[fault.at][1]
        wrong = _clean(ended.status, ended.said, fault, path) or attempted(lambda: check_published(folder))
        if not wrong and (arguments := of.command.resume(folder)) is not None:
            wrong = finished(children.run(Job(folder, arguments, None, task.broken)), folder, of)
        if wrong and task.keep is not None:
            shutil.copytree(folder, task.keep / f"{number:05d}-{name}")
        shutil.rmtree(folder)
        return wrong

    with ThreadPoolExecutor(usable_cpus()) as pool, task.progress.bar("faults", len(tried), "operations") as bar:
        for number, wrong in enumerate(pool.map(trial, range(len(tried)))):
            name, fault = tried[number]
            kind, path = unbroken[name].ended.operations[fault.at]
            counts[f"{fault.how} at {kind}"] += 1
            if wrong:
                failures.append(f"{name}, {fault.how} at operation {fault.at} ({kind} {path}): {wrong}")
            bar.advance(1)
    return Outcome(len(tried), tuple(failures), dict(counts))


def faults_of(of: Unbroken) -> list[Fault]:
    """Every way in which every operation of a command can fail."""
    faults = []
    for number, (kind, _) in enumerate(of.ended.operations):
        faults += [Fault(number, "kill"), Fault(number, "EIO")]
        if kind in NEEDS_ROOM:
            faults.append(Fault(number, "ENOSPC"))
        if kind in ("write", "append"):
            faults.append(Fault(number, "half"))
    return faults


def _clean(status: int | None, said: str, fault: Fault, path: str) -> str:
    """What is wrong about the way in which the command ended; `path` is what the failed operation was on."""
    if fault.how in ("kill", "half"):
        return "" if status is None else f"exit status {status} in place of a kill: {said.strip()[-600:]}"
    if status != STATUS or "Traceback" in said:
        return f"exit status {status}, expected {STATUS} and a message: {said.strip()[-600:]}"
    message = said.strip().splitlines()[-1]
    named = message.startswith("error: ") and ("/" in message or path in message)
    return "" if named else f"names no file: {message[:300]}"
