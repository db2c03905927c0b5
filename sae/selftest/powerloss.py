"""Loss of power at any moment: every file that is published is whole, none that was acknowledged is lost, runs resume.

A command runs once, and every change of the disk is recorded (`sae.base.disk`). Then power is lost after any of these
operations in a model of a disk (`disk_model`), and the toolkit opens what is left.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sae.base.disk import TEMPORARY, Operation, observed
from sae.selftest.disk_model import DiskModel
from sae.selftest.harness import Outcome, Task
from sae.selftest.scenarios import Scenario, make_scenarios

RESUMED = 20
"""Every so many trials the command is also resumed to its end."""
UNRECORDED = (".lock",)
"""Endings of files that carry nothing: the system forgets locks when it stops."""


class Recorded(NamedTuple):
    """A command that ran once."""

    scenario: Scenario
    log: list[Operation]
    before: Path
    """A copy of the folder as it was before."""
    result: str
    """What the unbroken command gave, as a hash."""
    published: list[Published]
    """Every file that got its final name, in the order of the log."""


class Published(NamedTuple):
    """A file under its final name."""

    path: str
    """In the folder of the scenario."""
    content: bytes
    at: int
    """The operation that gave it the name."""
    acknowledged: int
    """The operation before which the program went on, and relied on it."""


def run(task: Task) -> Outcome:
    """Record every scenario, then lose power at `task.n` random places."""
    draw = random.Random(task.seed)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with contextlib.redirect_stderr(io.StringIO()):  # what the commands tell a person
        recorded = [record(scenario, task.broken) for scenario in make_scenarios(task.world, task.folder)]
    for one in recorded:
        counts[f"operations of {one.scenario.name}"] = len(one.log)
        failures += [f"{one.scenario.name}: {path} was not written through the seam" for path in unexplained(one)]
    recorded = [one for one in recorded if one.log]
    with task.progress.bar("powerloss", task.n, "crashes") as bar:
        for number in range(task.n):
            one = recorded[number % len(recorded)]
            at = draw.randrange(len(one.log)) + 1
            resumes = number // len(recorded) % RESUMED == 0
            wrong = crash(one, at, random.Random(f"{task.seed}-{number}"), resumes=resumes)
            counts["resumed to the end"] += resumes
            if wrong:
                failures.append(f"{number}: {one.scenario.name} after operation {at} of {len(one.log)}: {wrong}")
                if task.keep is not None:
                    shutil.copytree(one.scenario.folder, task.keep / str(number))
            shutil.rmtree(one.scenario.folder)
            bar.advance(1)
    return Outcome(task.n, tuple(failures), dict(counts))


def record(scenario: Scenario, broken: str | None) -> Recorded:
    """Run the command of a scenario; its folder is gone afterwards."""
    log: list[Operation] = []

    def recorder(operation: Operation, perform: Callable[[], None]) -> None:
        perform()
        if operation.kind in ("write", "commit") and operation.data is None:
            operation = operation._replace(data=operation.path.read_bytes())
        if not (broken == "no-fsync" and operation.kind == "fsync") and not (
            broken == "no-folder-fsync" and operation.kind == "fsync_folder"
        ):
            log.append(operation)

    folder = scenario.folder
    scenario.prepare()
    before = folder.with_name(f"{folder.name}-before")
    shutil.copytree(folder, before)
    with observed(recorder):
        scenario.act()
    shutil.copytree(folder, folder.with_name(f"{folder.name}-after"))
    result = scenario.result()
    shutil.rmtree(folder)
    # operations outside the folder, such as in a cache, are none of the scenario's
    log = [operation for operation in log if operation.path.is_relative_to(folder)]
    return Recorded(scenario, log, before, result, published_in(log, before, folder))


def published_in(log: Sequence[Operation], before: Path, folder: Path) -> list[Published]:
    """The files that get their final names by each rename."""
    disk = _disk(before, folder)
    published = []
    for at, operation in enumerate(log):
        disk.perform(operation)
        if operation.kind != "rename" or operation.target is None or operation.target.name.startswith(TEMPORARY):
            continue
        if any(part.startswith(TEMPORARY) for part in operation.target.relative_to(folder).parts):
            continue
        name = operation.target.relative_to(folder).as_posix()
        acknowledged = at + 1
        while acknowledged < len(log) and log[acknowledged] == Operation("fsync_folder", operation.target.parent):
            acknowledged += 1
        for path, content in disk.seen.paths().items():
            if content is not None and (path == name or path.startswith(f"{name}/")):
                published.append(Published(path, content, at, acknowledged))
    return published


def crash(one: Recorded, at: int, draw: random.Random, *, resumes: bool) -> str:
    """Lose power after `at` operations, look at every file, open all, resume; what is wrong, empty if nothing is."""
    folder = one.scenario.folder
    disk = _disk(one.before, folder)
    for operation in one.log[:at]:
        disk.perform(operation)
    left = disk.lose_power(draw)
    folder.mkdir()
    left.write(folder)
    there = {path: content for path, content in left.paths().items() if content is not None}
    if wrong := _invalid(one, at, there):
        return wrong
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            one.scenario.open()
            if resumes:
                one.scenario.resume()
                if one.scenario.result() != one.result:
                    return "resumed to another result than that of the unbroken command"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def _invalid(one: Recorded, at: int, there: dict[str, bytes]) -> str:
    """A published file that is neither its old nor its new self, or was acknowledged and is lost."""
    gone = {o.path.relative_to(one.scenario.folder).as_posix() for o in one.log[:at] if o.kind in ("rename", "unlink")}
    versions: dict[str, list[Published]] = {}
    for file in one.published:
        if file.at < at:
            versions.setdefault(file.path, []).append(file)
    appended = {o.path.relative_to(one.scenario.folder).as_posix() for o in one.log if o.kind in ("append", "commit")}
    for path, known in versions.items():
        if path in appended:
            continue  # its reader decides
        old = one.before / path
        allowed = [file.content for file in known] + ([old.read_bytes()] if old.is_file() else [])
        kept = [file for file in known if file.acknowledged <= at]
        if kept:
            allowed = [file.content for file in known if file.at >= kept[-1].at]
        if path in there and there[path] not in allowed:
            return f"{path} is neither as it was nor as it was published"
        removed = any(path == name or path.startswith(f"{name}/") for name in gone)
        if kept and path not in there and not removed:
            return f"{path} was acknowledged and is lost"
    return ""


def unexplained(one: Recorded) -> list[str]:
    """Paths of files that differ from what the log made of the folder: something wrote past the seam."""
    disk = _disk(one.before, one.scenario.folder)
    for operation in one.log:
        disk.perform(operation)
    after = one.scenario.folder.with_name(f"{one.scenario.folder.name}-after")
    real = {p.relative_to(after).as_posix(): p.read_bytes() for p in after.rglob("*") if p.is_file()}
    modelled = {path: content for path, content in disk.seen.paths().items() if content is not None}
    names = real.keys() | modelled.keys()
    return sorted(n for n in names if real.get(n) != modelled.get(n) and not n.endswith(UNRECORDED))


def _disk(before: Path, folder: Path) -> DiskModel:
    """A disk on which the folder is as it was before the command."""
    disk = DiskModel(before)
    disk.root = folder
    return disk
