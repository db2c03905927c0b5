"""SIGKILL at any moment, SIGINT and SIGTERM: the resumed run ends with the very bits of the unbroken one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import forked
from conftest import run_sae
from sae.base.files import sha256_of

TWO_THREADS = {"OMP_NUM_THREADS": "2"}


def start(*arguments: object) -> forked.Forked:
    return forked.start([sys.executable, "-m", "sae", *arguments], env={**os.environ, **TWO_THREADS})


def steps_logged(run: Path) -> int:
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def signal_at_step(process: forked.Forked, run: Path, step: int, signum: int) -> None:
    """Send `signum` as soon as the run's log has reached `step`."""
    deadline = time.monotonic() + 240
    while steps_logged(run) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signum)


@pytest.fixture(scope="module")
def short_run(tiny_model: Path, corpus: Path) -> list[object]:
    """80 steps with a checkpoint every 8, with latents dying (AuxK runs)."""
    return [
        "train", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 256, "--k", 4,
        "--tokens", 20_480, "--batch", 256, "--context", 64, "--contexts", 4,
        "--store-precision", "float32", "--checkpoint-every", 2048, "--log-every", 1, "--dead-after", 2000,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(short_run: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of unbroken runs: live, and over a store for two epochs."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name, extra in RUNS.items():
        done = run_sae(*short_run, *extra, "--out", folder / name, env=TWO_THREADS)
        assert done.returncode == 0, done.stderr
    return {name: folder / name for name in RUNS}


LIVE: list[object] = ["--buffer-mb", 1]
"""Over buffers of 8 batches."""
# more than 32,768 entries a batch: here PyTorch and the kernels take several threads
PARALLEL: list[object] = ["--width", 1024, "--k", 16, "--batch", 2560, "--buffer-mb", 4, "--checkpoint-every", 7680]
RUNS: dict[str, list[object]] = {
    "live": LIVE,
    "epochs": ["--epochs", 2, "--tokens", 10_240],
    "gated": ["--variant", "gated", *PARALLEL],
}


@pytest.mark.parametrize(("kind", "step"), [("live", 3), ("live", 37), ("epochs", 61), ("gated", 5)])
def test_a_killed_run_resumes_to_identical_weights(
    kind: str, step: int, short_run: list[object], unbroken: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*short_run, *RUNS[kind], "--out", run)
    signal_at_step(process, run, step, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "sae.safetensors").exists(), "the kill came too late to prove anything"
    resumed = run_sae("train", "--resume", "--out", run, "--json", env=TWO_THREADS)
    assert resumed.returncode == 0, resumed.stderr
    whole, broken = (load_file(r / "sae.safetensors") for r in (unbroken[kind], run))
    assert whole.keys() == broken.keys()
    for name, tensor in whole.items():
        assert tensor.equal(broken[name]), name
    assert sha256_of(unbroken[kind] / "sae.safetensors") == sha256_of(run / "sae.safetensors")
    logs = [[json.loads(line) for line in (r / "metrics.jsonl").open()] for r in (unbroken[kind], run)]
    assert [line["step"] for line in logs[1]] == [line["step"] for line in logs[0]]
    assert [line["loss"] for line in logs[1]] == [line["loss"] for line in logs[0]]
    if kind in ("live", "epochs") and step > 8:
        assert re.search(r"Resuming at step [1-9]", resumed.stderr), "a checkpoint was there to resume from"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_resume(
    signum: int, status: int, short_run: list[object], unbroken: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*short_run, *LIVE, "--out", run)
    signal_at_step(process, run, 20, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert f"continue with: sae train --resume --out {run}" in errors
    newest = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    assert int(newest.name) >= 20
    resumed = run_sae("train", "--resume", "--out", run, env=TWO_THREADS)
    assert resumed.returncode == 0, resumed.stderr
    assert sha256_of(unbroken["live"] / "sae.safetensors") == sha256_of(run / "sae.safetensors")


def test_a_second_process_is_refused_with_the_owners_pid(short_run: list[object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*short_run, *LIVE, "--out", run)
    signal_at_step(process, run, 1, signal.SIGSTOP)
    try:
        second = run_sae("train", "--resume", "--out", run)
        assert second.returncode == 2
        assert f"another process (pid {process.pid})" in second.stderr
    finally:
        process.kill()
        process.wait()
    third = run_sae("train", "--resume", "--out", run)  # a killed owner's lock does not stay
    assert third.returncode == 0, third.stderr


def test_a_damaged_checkpoint_is_named_and_not_used(short_run: list[object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*short_run, *LIVE, "--out", run)
    signal_at_step(process, run, 30, signal.SIGKILL)
    process.wait()
    newest = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    state = newest / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    refused = run_sae("train", "--resume", "--out", run)
    assert refused.returncode == 2
    assert str(state) in refused.stderr
    assert f"delete {newest} to resume" in refused.stderr


def test_resuming_with_another_setting_is_refused(unbroken: dict[str, Path], tmp_path: Path) -> None:
    finished = run_sae("train", "--resume", "--out", unbroken["live"])
    assert finished.returncode == 2
    assert "is finished" in finished.stderr
    none = run_sae("train", "--resume", "--out", tmp_path / "nothing", "--model", "x", "--dataset", "y")
    assert none.returncode == 2
    assert "no run to continue" in none.stderr
