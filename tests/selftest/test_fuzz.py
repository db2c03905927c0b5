"""`sae selftest fuzz` at small size, the limits of its child processes, and protections that it misses when gone."""

from __future__ import annotations

import os
import random
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sae.base.files import CorruptError
from sae.base.npz import check_sizes
from sae.base.reading import reading
from sae.interop.files import tensors_in
from sae.selftest.confined import confined
from sae.selftest.mutations import BY_SUFFIX, mutate
from sae.selftest.run import run_selftest


def test_mutated_files_are_read_or_refused_by_name() -> None:
    result = run_selftest("fuzz", n=250)
    assert result["status"] == 0, result.get("failed")
    counts = result["counts"]["fuzz"]
    assert counts["readers"] > 30
    assert counts["refused"] > counts["read"] > 0
    assert counts["memory (MB, at most)"] < 1024


def test_errors_of_libraries_that_pass_through_are_noticed() -> None:
    result = run_selftest("fuzz", n=250, broken="no-guard")
    assert result["status"] == 1
    assert any("unclean" in line for line in result["failed"])


def bomb(path: Path, megabytes: int) -> Path:
    """An archive of a few kilobytes with an array of many megabytes."""
    np.savez_compressed(path, W=np.zeros(megabytes << 18, np.float32))
    return path


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"w\.npz: .* bytes when unpacked, expected at most"):
        tensors_in(bomb(tmp_path / "w.npz", 80))
    check_sizes(bomb(tmp_path / "small.npz", 8))


def test_an_array_that_claims_more_than_the_archive_has_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("W.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(CorruptError, match=r"W\.npy says float32 \(1099511627776,\)"):
        tensors_in(tmp_path / "w.npz")


def test_an_array_whose_header_breaks_off_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("W.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(CorruptError, match=r"w\.npz: cannot be read"):
        tensors_in(tmp_path / "w.npz")


def test_a_mutation_is_a_function_of_the_draw() -> None:
    for suffix in (*BY_SUFFIX, ".bin"):
        content = b'{"a": [1, 2, {"b": null}], "c": "text"}' * 3
        one, same = (mutate(f"file{suffix}", content, random.Random(5)) for _ in range(2))
        assert one == same
        assert len({mutate(f"file{suffix}", content, random.Random(seed)) for seed in range(20)}) > 10


def job(number: int) -> object:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        try:
            return len(bytearray(2 << 30))
        except MemoryError:
            return "too much"
    if number == 5:
        try:
            time.sleep(5)
        except BaseException as error:
            return type(error).__name__
    return number


def test_a_child_that_dies_hangs_or_takes_too_much_is_reported_and_the_others_go_on() -> None:
    verdicts = {verdict.number: verdict for verdict in confined(job, range(7), seconds=0.5)}
    assert [verdicts[number].result for number in (0, 1, 3, 6)] == [0, 1, 3, 6]
    assert verdicts[2].died == "died of SIGSEGV"
    assert verdicts[4].result == "too much"
    assert verdicts[5].result == "TooSlow"


def test_reading_names_the_file_and_lets_our_own_and_the_system_s_errors_pass(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with (
        pytest.raises(CorruptError, match=rf"{path}: cannot be read \(KeyError 'k'\); do this"),
        reading(path, remedy="do this"),
    ):
        raise KeyError("k")
    for error in (CorruptError("ours"), PermissionError(13, "no"), MemoryError("much")):
        with pytest.raises(type(error)) as raised, reading(path):
            raise error
        assert raised.value is error
