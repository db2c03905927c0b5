"""What arrays in numpy's formats claim to hold, looked at before memory is taken for them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from sae.base.files import CorruptError


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
