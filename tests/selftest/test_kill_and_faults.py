"""`sae selftest kill` and `faults` pass, and fail where a protection is taken away.

They take tens of seconds: each trial runs a command twice in processes of its own. They share the undisturbed runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from sae.base.progress import Progress
from sae.selftest.children import Children, Fault
from sae.selftest.faults import failed, faults_of
from sae.selftest.harness import Task
from sae.selftest.kill import killed
from sae.selftest.unbroken import Unbroken, commands, run_unbroken


class Prepared(NamedTuple):
    """What trials start from."""

    children: Children
    unbroken: dict[str, Unbroken]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The training run and what follows it, undisturbed."""
    folder, children = tmp_path_factory.mktemp("unbroken"), Children()
    task = make_task(folder)
    wanted = {name: command for name, command in commands(task.world).items() if name not in ("store", "sweep")}
    return Prepared(children, run_unbroken(folder / "runs", wanted, children))


def make_task(folder: Path, n: int = 1, broken: str | None = None) -> Task:
    return Task(folder=folder, n=n, seed=0, broken=broken, keep=None, progress=Progress())


def at(unbroken: Unbroken, kind: str, path: str, which: int = -1) -> int:
    """The number of an operation on paths like this: the last one, or another."""
    return [n for n, (k, p) in enumerate(unbroken.ended.operations) if k == kind and re.search(path, p)][which]


def test_killed_commands_resume_to_the_same_bits(prepared: Prepared, tmp_path: Path) -> None:
    outcome = killed(make_task(tmp_path, n=8), *prepared, list(prepared.unbroken))
    assert outcome.failures == ()
    assert outcome.n == 8
    assert outcome.counts["kills"] > 0


@pytest.mark.parametrize("broken", ["no-moments", "no-place"])
def test_a_run_that_resumes_without_its_state_is_noticed(broken: str, prepared: Prepared, tmp_path: Path) -> None:
    # killed while it writes its last checkpoint, it resumes from the one before
    fault = Fault(at(prepared.unbroken["train"], "write", "state.safetensors"), "half")
    outcome = failed(make_task(tmp_path, broken=broken), *prepared, [("train", fault)])
    assert len(outcome.failures) == 1
    assert "differs" in outcome.failures[0] or "another batch" in outcome.failures[0]


def test_every_way_to_fail_is_tried_at_every_operation(prepared: Prepared) -> None:
    for of in prepared.unbroken.values():
        faults = set(faults_of(of))
        for number, (kind, _) in enumerate(of.ended.operations):
            assert {Fault(number, "kill"), Fault(number, "EIO")} <= faults
            assert (Fault(number, "ENOSPC") in faults) == (
                kind not in ("fsync", "fsync_folder", "unlink", "remove_folder")
            )


def test_failed_operations_leave_the_old_state_whole(prepared: Prepared, tmp_path: Path) -> None:
    train, features = prepared.unbroken["train"], prepared.unbroken["features"]
    faults = [
        ("train", Fault(at(train, "fsync", "state.safetensors"), "EIO")),
        ("train", Fault(at(train, "append", "metrics"), "ENOSPC")),
        ("train", Fault(at(train, "rename", "config.json"), "kill")),
        ("features", Fault(at(features, "write", "features.sqlite"), "half")),
        ("features", Fault(at(features, "commit", "lens"), "EIO")),
        ("explain", Fault(at(prepared.unbroken["explain"], "commit", "annotations", 0), "kill")),
        ("eval", Fault(at(prepared.unbroken["eval"], "write", "eval.json"), "ENOSPC")),
    ]
    outcome = failed(make_task(tmp_path, n=len(faults)), *prepared, faults)
    assert outcome.failures == ()


def test_files_without_a_temporary_name_are_noticed(prepared: Prepared, tmp_path: Path) -> None:
    fault = Fault(at(prepared.unbroken["train"], "write", "config.json"), "half")
    outcome = failed(make_task(tmp_path, broken="no-rename"), *prepared, [("train", fault)])
    assert len(outcome.failures) == 1


def test_errors_of_fsync_that_are_passed_over_are_noticed(prepared: Prepared, tmp_path: Path) -> None:
    fault = Fault(at(prepared.unbroken["eval"], "fsync", "eval.json"), "EIO")
    outcome = failed(make_task(tmp_path, broken="no-fsync-errors"), *prepared, [("eval", fault)])
    assert len(outcome.failures) == 1
    assert "expected 1 and a message" in outcome.failures[0]
