"""`sae selftest kill-ranks`: a job killed while it writes a checkpoint resumes on 2 ranks and on 1, broken or not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from forked import children
from sae.selftest.children import Fault
from sae.selftest.forked_ranks import RankJob, Strike, run_job
from sae.selftest.kill_ranks import RUN, Means, Unbroken, arguments, killed_run, run_unbroken
from sae.selftest.world import make_world

MESH = "1x2"


class Killed(NamedTuple):
    """A run on two ranks that was killed, and the same run undisturbed."""

    means: Means
    folder: Path
    unbroken: Unbroken


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Killed before the second rank writes its part of the fourth checkpoint."""
    folder = tmp_path_factory.mktemp("ranks")
    means = Means(make_world(folder / "world"), children())
    unbroken = run_unbroken(means, folder / "unbroken", MESH)
    place = folder / "killed"
    place.mkdir()
    strike = Strike("job", 1, fault=Fault(3, "kill"))
    ended = run_job(children(), RankJob(place, arguments(means.toy, MESH), 2, strike))
    assert ended.struck
    assert not ended.left
    assert not (place / RUN / "sae.safetensors").exists()
    assert any((place / RUN / "checkpoints").glob(".partial-*")), "killed while a checkpoint was written"
    return Killed(means, place, unbroken)


def resumed(killed: Killed, folder: Path, world: int, broken: str | None = None) -> str:
    shutil.copytree(killed.folder, folder)
    means = killed.means._replace(broken=broken)
    return killed_run(means, folder, killed.unbroken, (world,), iter(()), random.Random(0), [], world=world)


@pytest.mark.parametrize("world", [2, 1])
def test_a_killed_job_of_ranks_ends_as_the_unbroken_one(world: int, killed: Killed, tmp_path: Path) -> None:
    assert resumed(killed, tmp_path / "run", world) == ""


@pytest.mark.parametrize("broken", ["no-moments", "no-place"])
def test_a_job_that_resumes_without_its_state_is_noticed(broken: str, killed: Killed, tmp_path: Path) -> None:
    assert "differ" in resumed(killed, tmp_path / "run", 1, broken)
