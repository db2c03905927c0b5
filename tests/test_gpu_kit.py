"""The GPU kit runs to its end under Triton's interpreter, and keeps what a stage measured before it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).parents[1] / "scripts/gpu/check.sh"
STAGES = ("machine", "steps", "training", "options", "encoders", "tests", "kernels", "memcheck")


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([KIT, out, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one whole run."""
    out = tmp_path_factory.mktemp("kit")
    finished = run(out, "--toy", "--budget", "800")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return out, finished.stdout


def test_every_stage_is_done_and_in_the_table(toy: tuple[Path, str]) -> None:
    out, printed = toy
    for stage in STAGES:
        assert json.loads((out / f"{stage}.json").read_text())["status"] == "done"
        assert f"### {stage} (done" in printed
    assert json.loads(printed.splitlines()[-1])["kit"] == "gpu"


def test_the_ops_and_the_step_ran_on_triton(toy: tuple[Path, str]) -> None:
    out, _ = toy
    kernels = json.loads((out / "kernels.json").read_text())["rows"]
    assert {row["backend"] for row in kernels} == {"gpu"}
    assert len(kernels) == 8
    steps = json.loads((out / "steps.json").read_text())["rows"]
    assert all(row["step ms"] > 0 and row["dense PyTorch ms"] > 0 for row in steps)
    options = json.loads((out / "options.json").read_text())["rows"]
    assert [row["option"] for row in options] == ["weights bfloat16, moments int8"]
    assert all(row["route"] == "fused" and row["step ms"] > 0 for row in options)
    encoders = json.loads((out / "encoders.json").read_text())["rows"]
    assert {row["op"] for row in encoders} == {"topk_encode", "threshold_encode", "batch_topk_encode"}
    assert all(row["fused ms"] > 0 and row["vendor ms"] > 0 for row in encoders)
    tests = json.loads((out / "tests.json").read_text())["rows"]
    assert [row["failed"] for row in tests] == [0]
    assert tests[0]["passed"] > 0


def test_a_stage_that_is_done_is_kept_and_one_without_time_says_so(toy: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = toy
    before = (out / "steps.json").stat().st_mtime_ns
    assert run(out, "--toy", "--only", "steps").returncode == 0
    assert (out / "steps.json").stat().st_mtime_ns == before
    finished = run(tmp_path, "--toy", "--only", "machine", "--budget", "1")
    assert "no time left" in finished.stdout
    assert json.loads((tmp_path / "machine.json").read_text())["status"] == "no time left"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run(tmp_path, "--only", "machine").returncode == 1
    assert "no GPU" in (tmp_path / "machine.log").read_text()
