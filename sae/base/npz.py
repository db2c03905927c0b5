"""Files of numpy: arrays with a record beside them, and what an array claims to hold before memory is taken for it."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sae.base.files import CorruptError, parse_json, publish_file
from sae.base.reading import reading


class Unpacked(NamedTuple):
    """How many bytes an archive may have when unpacked: `least`, and `times` its own."""

    least: int
    times: int


UNPACKED = Unpacked(64 << 20, 16)


def shape_and_type(npy: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Those of an array in a stream of numpy's format, from its header alone."""
    version = np.lib.format.read_magic(npy)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(npy)
    return shape, dtype


def check_sizes(path: Path) -> None:
    """Refuse an .npz file whose arrays would take far more memory than the file has bytes, before they are read.

    Raises:
        CorruptError: an array is larger than its member of the archive, or all of them than `UNPACKED` allows.
    """
    allowed = UNPACKED.least + UNPACKED.times * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        total = sum(info.file_size for info in archive.infolist())
        if total > allowed:
            raise CorruptError(
                f"{path}: {total:,} bytes when unpacked, expected at most {allowed:,} of a file of this size"
            )
        for info in archive.infolist():
            with archive.open(info) as member:
                if member.read(6) != np.lib.format.MAGIC_PREFIX:
                    continue
            with archive.open(info) as member:
                shape, dtype = shape_and_type(member)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise CorruptError(f"{path}: {info.filename} says {dtype} {shape}, and has {info.file_size:,} bytes")


RECORD = "info"
"""Name of the array that holds the record, as JSON in bytes."""


def write_arrays(path: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Publish arrays and a record of JSON values in one .npz file, in place of an earlier one."""
    members: dict[str, Any] = {**arrays, RECORD: np.frombuffer(json.dumps(record).encode(), np.uint8)}
    publish_file(path, lambda stream: np.savez(stream, **members))


def read_arrays(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays that `write_arrays` published.

    Raises:
        CorruptError: the file is damaged; ends with the remedy.
    """
    with reading(path, remedy=remedy):
        check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != RECORD}
            record = parse_json(file[RECORD].tobytes())
        if not isinstance(record, dict):
            raise TypeError(f"its {RECORD} is no object of JSON")
        return record, arrays
