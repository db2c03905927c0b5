"""Every operation on the disk passes one place, where it is seen and can be made to fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sae.base import disk
from sae.base.disk import Operation, observed
from sae.base.files import check_folder, publish_file, publish_folder, save_tensors, write_file


def recorded(work: Callable[[], None]) -> list[Operation]:
    operations: list[Operation] = []

    def record(operation: Operation, perform: Callable[[], None]) -> None:
        operations.append(operation)
        perform()

    with observed(record):
        work()
    return operations


def failing_at(index: int) -> disk.Observer:
    """An observer that lets the operation `index` fail as on a full disk."""
    left = index

    def fail(operation: Operation, perform: Callable[[], None]) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))
        perform()

    return fail


def folder_of_two_files(path: Path) -> None:
    import torch

    with publish_folder(path) as temporary:
        write_file(temporary / "text.txt", "text")
        save_tensors(temporary / "t.safetensors", {"x": torch.ones(2)})


def test_a_file_is_written_flushed_renamed_and_its_folder_flushed(tmp_path: Path) -> None:
    operations = recorded(lambda: publish_file(tmp_path / "new" / "f", b"content"))
    kinds = ["make_folder", "fsync_folder", "write", "fsync", "rename", "fsync_folder"]
    assert [operation.kind for operation in operations] == kinds
    assert operations[2].data == b"content"
    assert operations[4].path == operations[2].path
    assert operations[4].target == tmp_path / "new" / "f"


def test_no_file_takes_its_name_before_its_bytes_are_on_the_disk(tmp_path: Path) -> None:
    flushed: set[Path] = set()
    operations = recorded(lambda: folder_of_two_files(tmp_path / "x"))
    for operation in operations:
        if operation.kind == "fsync":
            flushed.add(operation.path)
        if operation.kind == "rename" and operation.target == tmp_path / "x":
            assert {path.name for path in flushed} > {"text.txt", "t.safetensors"}
    assert operations[-1].kind == "fsync_folder"


def test_a_failed_operation_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "x"
    folder_of_two_files(target)
    count = len(recorded(lambda: folder_of_two_files(target)))
    assert count > 10
    for index in range(count):
        with observed(failing_at(index)), pytest.raises(OSError, match="No space") as caught:
            folder_of_two_files(target)
        assert str(target.parent) in str(caught.value.filename)
        check_folder(target)


def test_an_append_that_fails_adds_nothing(tmp_path: Path) -> None:
    disk.append(tmp_path / "log", b"one\n")
    assert recorded(lambda: disk.append(tmp_path / "log", b"two\n"))[0].data == b"two\n"
    with observed(failing_at(0)), pytest.raises(OSError, match="No space"):
        disk.append(tmp_path / "log", b"three\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_removed_folder_loses_its_name_first(tmp_path: Path) -> None:
    folder_of_two_files(tmp_path / "x")
    operations = recorded(lambda: disk.remove(tmp_path / "x"))
    assert operations[0].kind == "rename"
    assert operations[-1].kind == "remove_folder"
    assert not list(tmp_path.iterdir())
