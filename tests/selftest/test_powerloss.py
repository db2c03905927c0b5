"""`sae selftest powerloss` at small size, the model of the disk, and an fsync that is left out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sae.base.disk import Operation
from sae.selftest.disk_model import DiskModel
from sae.selftest.run import run_selftest


def test_no_loss_of_power_leaves_an_invalid_published_state() -> None:
    result = run_selftest("powerloss", n=36)
    assert result["status"] == 0, result.get("failed")
    assert result["counts"]["powerloss"]["resumed to the end"] == 6


@pytest.mark.parametrize("broken", ["no-fsync", "no-folder-fsync"])
def test_an_fsync_that_is_left_out_is_noticed(broken: str) -> None:
    assert run_selftest("powerloss", n=48, broken=broken)["status"] == 1


def states(root: Path, operations: list[Operation]) -> set[frozenset[tuple[str, bytes | None]]]:
    """All that 300 losses of power leave."""
    found = set()
    for seed in range(300):
        disk = DiskModel(root)
        for operation in operations:
            disk.perform(operation)
        found.add(frozenset(disk.lose_power(random.Random(seed)).paths().items()))
    return found


def test_what_was_flushed_is_kept_and_what_was_not_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "new"
    write, flush, name = (
        Operation("write", path, b"x" * 1024),
        Operation("fsync", path),
        Operation("fsync_folder", tmp_path),
    )
    whole = frozenset({("new", b"x" * 1024)})
    assert states(tmp_path, [write, flush, name]) == {whole}
    assert states(tmp_path, [write, flush]) == {whole, frozenset()}
    torn = states(tmp_path, [write, name])
    assert whole in torn
    assert frozenset({("new", b"")}) in torn
    assert frozenset({("new", b"x" * 512 + bytes(512))}) in torn


def test_a_rename_is_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "draft").write_bytes(b"new")
    rename = Operation("rename", tmp_path / "draft", target=tmp_path / "old")
    before, after = {("old", b"old"), ("draft", b"new")}, {("old", b"new")}
    assert states(tmp_path, [rename]) == {frozenset(before), frozenset(after)}
    assert states(tmp_path, [rename, Operation("fsync_folder", tmp_path)]) == {frozenset(after)}
