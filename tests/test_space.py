"""A disk that fills up, for real: a small file system (or, without the right to mount one, a limit on file sizes)."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sae.base.files import check_folder, sha256_of
from sae.cli import main as cli
from sae.training import trainer

MIB = 1 << 20


class SmallDisk(NamedTuple):
    """A place whose space can be used up and given back."""

    folder: Path
    fill: Callable[[int], None]
    """Leave about so many bytes: 16 KiB take a line of metrics, but no checkpoint."""
    empty: Callable[[], None]
    says: str
    """What a write on the full disk is refused with."""


def _file_system(folder: Path) -> SmallDisk:
    ballast = folder / "ballast"

    def fill(spare: int) -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while stream.write(bytes(size)):
                        pass
            stream.truncate(os.path.getsize(ballast) - spare)

    return SmallDisk(folder, fill, ballast.unlink, "no space left on the disk")


def _file_sizes(folder: Path) -> SmallDisk:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(spare: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spare, before[1]))

    def empty() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return SmallDisk(folder, fill, empty, "over the limit on a file's size")


@pytest.fixture(params=["file system", "file sizes"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "file system":
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a file system takes root; the limit on file sizes stands in for it")
        yield _file_system(folder)
        subprocess.run(["umount", folder], check=True)
        return
    limited = _file_sizes(folder)
    yield limited
    limited.empty()


@pytest.fixture
def arguments(tiny_model: Path, corpus: Path) -> list[object]:
    """12 steps with a checkpoint every 4."""
    return [
        "train", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 256, "--k", 8, "--tokens", 3072,
        "--batch", 256, "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--log-every", 1,
        "--checkpoint-every", 1024, "--store-precision", "float32",
    ]  # fmt: skip


def run(*arguments: object) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hash of the weights of an unbroken run, computed once."""
    return {}


def test_a_full_disk_stops_training_cleanly_and_a_resume_ends_with_the_same_weights(
    disk: SmallDisk,
    arguments: list[object],
    unbroken: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not unbroken:
        assert run(*arguments, "--out", tmp_path / "whole") == 0
        unbroken["sha256"] = sha256_of(tmp_path / "whole" / "sae.safetensors")
    save = trainer.save_checkpoint

    def save_then_fill(*given, **named):
        saved = save(*given, **named)
        disk.fill(16_384)
        return saved

    out = disk.folder / "run"
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_checkpoint", save_then_fill)
        status = run(*arguments, "--out", out)
    errors = capsys.readouterr().err
    assert status == 1
    message = errors.splitlines()[-1]
    assert message.startswith(f"error: {disk.says}" if disk.says.startswith("no") else "error: "), errors
    assert disk.says in message
    assert str(out / "checkpoints" / "000000008") in message
    assert "--resume" in message
    assert "Traceback" not in errors
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["000000004"], "no half-written one is left"
    check_folder(out / "checkpoints" / "000000004")
    assert not (out / "sae.safetensors").exists()

    disk.empty()
    assert run("train", "--resume", "--out", out) == 0
    assert "Resuming at step 4 of 12" in capsys.readouterr().err
    assert sha256_of(out / "sae.safetensors") == unbroken["sha256"]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
    assert steps == list(range(1, 13))


def test_a_disk_full_from_the_start_leaves_no_run_folder(
    disk: SmallDisk, arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sae.training.run.check_space", lambda plan: None)  # which would have refused before
    disk.fill(0)
    status = run(*arguments, "--out", disk.folder / "run")
    disk.empty()
    assert status == 1
    assert disk.says in capsys.readouterr().err
    assert not (disk.folder / "run").exists()


@pytest.mark.parametrize("disk", ["file system"], indirect=True)
def test_a_run_too_large_for_its_disk_is_refused_before_it_starts(
    disk: SmallDisk, arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--width", 8192, "--out", disk.folder / "run") == 2
    errors = capsys.readouterr().err
    assert "MiB are needed" in errors
    assert "are free on that disk" in errors
    assert list(disk.folder.iterdir()) == []


def test_a_full_disk_in_the_middle_of_a_harvest_keeps_its_whole_shards(
    disk: SmallDisk,
    arguments: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sae.harvest import store as stores

    monkeypatch.setattr(stores, "SHARD_ROWS", 1000)
    append = stores.DiskStore.append

    def append_then_fill(self, *given):
        append(self, *given)
        if len(self.parts) == 1:
            disk.fill(16_384)

    kept = disk.folder / "store"
    with monkeypatch.context() as patched:
        patched.setattr(stores.DiskStore, "append", append_then_fill)
        assert run(*arguments, "--store", kept, "--out", tmp_path / "run") == 1
    errors = capsys.readouterr().err
    assert disk.says in errors
    assert str(kept / "shards" / "0-of-1" / "000001.safetensors") in errors
    assert [path.name for path in (kept / "shards").glob("*/*.safetensors")] == ["000000.safetensors"]
    disk.empty()
    assert run("train", "--resume", "--out", tmp_path / "run") == 0
    assert run(*arguments, "--store", tmp_path / "other", "--out", tmp_path / "whole") == 0
    assert sha256_of(tmp_path / "run" / "sae.safetensors") == sha256_of(tmp_path / "whole" / "sae.safetensors")
