"""Rows of activations in files: .safetensors, .npy and .parquet, read by number in bounded memory.

    rows = open_tensors("activations.safetensors")      # a file, or a folder of files of one kind
    train = rows.part("train", heldout=0.1, seed=0)
    train.read(range(256))                              # [256, width], in the file's precision

.safetensors and .npy are mapped into memory. A Parquet file is compressed: a read decodes the row groups it needs, once
each, whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sae.base.files import sha256_of
from sae.base.finite import all_finite, not_finite
from sae.base.reading import reading
from sae.config import ConfigError
from sae.config.tensors import SUFFIXES
from sae.data.batching import permutation
from sae.data.rows import DataError

RUN = 256  # neighbouring rows that are held out, or trained on, together
LEAST_RUNS = 100  # runs into which a small file is cut at least
CHUNK = 8192  # rows of a Parquet file decoded at a time
HASHED_WHOLE = 2 << 30  # bytes up to which a file is hashed whole
PIECES = 1024  # pieces of 1 MiB, evenly spaced, that are hashed of a larger one

Part = Literal["train", "heldout"]


class TensorFile(NamedTuple):
    """One file."""

    path: Path
    name: str
    """Of its tensor or column; empty for .npy."""
    rows: int
    width: int
    dtype: torch.dtype
    read: Callable[[Tensor], Tensor]
    """Row numbers int64 [n] -> [n, width]."""


class TensorRows:
    """The rows of one or several files, one file after another."""

    def __init__(self, path: Path, files: list[TensorFile]) -> None:
        self.path, self.files = path, files
        self.width = files[0].width
        self.count = sum(file.rows for file in files)
        # float64 is read as float32
        self.dtype = torch.float32 if files[0].dtype == torch.float64 else files[0].dtype
        self._ends = torch.tensor([file.rows for file in files]).cumsum(0)

    @property
    def name(self) -> str:
        """What a person calls the data: its path, with the tensor or column."""
        return f"{self.path.name}[{self.files[0].name}]" if self.files[0].name else self.path.name

    def provenance(self) -> dict[str, Any]:
        """JSON values that identify the data: every file's size and hash. Reads the files, 2 GiB of each at most."""
        files = [{"name": file.path.name, "bytes": file.path.stat().st_size, **_hash(file.path)} for file in self.files]
        shape = {"rows": self.count, "width": self.width, "dtype": str(self.files[0].dtype).removeprefix("torch.")}
        return {"path": str(self.path), "name": self.files[0].name, **shape, "files": files}

    def read(self, rows: Tensor) -> Tensor:
        """Rows by number, int64 [n] -> [n, width] on the CPU.

        Raises:
            DataError: a value is not finite, or the file is damaged; names file and row.
        """
        if len(self.files) == 1:
            return _checked(self.files[0], rows).to(self.dtype)
        values = torch.empty(len(rows), self.width, dtype=self.dtype)
        which = torch.bucketize(rows, self._ends, right=True)
        for index in which.unique().tolist():
            here = (which == index).nonzero().squeeze(1)
            file = self.files[index]
            values[here] = _checked(file, rows[here] - (int(self._ends[index]) - file.rows)).to(self.dtype)
        return values

    def part(self, part: Part, *, heldout: float, seed: int) -> TensorPart:
        """The training rows or the held-out ones. Neighbouring rows, often of one text, lie on the same side.

        Raises:
            DataError: there are too few rows to split.
        """
        run = max(1, min(RUN, self.count // LEAST_RUNS))
        runs = self.count // run  # what is left at the end is trained on
        order = permutation(runs, seed)
        count = round(heldout * runs)
        if not 0 < count < runs:
            raise DataError(f"{self.path}: {self.count} rows are too few to hold a share of {heldout} out")
        picked = order[:count] if part == "heldout" else order[count:]
        tail = self.count - runs * run if part == "train" else 0
        return TensorPart(self, picked.sort().values, run, tail)


class TensorPart:
    """The training rows, or the held-out ones, numbered from 0 in the order of the files."""

    def __init__(self, whole: TensorRows, runs: Tensor, run: int, tail: int) -> None:
        if tail:
            runs = torch.cat([runs, torch.tensor([whole.count // run])])
        self.whole, self._runs, self._run = whole, runs, run
        self.rows = len(runs) * run - (run - tail if tail else 0)

    def numbers(self, rows: range | Tensor) -> Tensor:
        """Rows of this part -> rows of the whole, int64."""
        wanted = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
        return self._runs[wanted // self._run] * self._run + wanted % self._run

    def read(self, rows: range | Tensor) -> Tensor:
        """Rows by number [n, width]; see `TensorRows.read`."""
        return self.whole.read(self.numbers(rows))


def open_tensors(data: str | Path, *, tensor: str | None = None, column: str | None = None) -> TensorRows:
    """The activations in a file, or in all files of a folder, sorted by name; nothing but shapes is read.

    Args:
        data: the path.
        tensor: name in .safetensors files.
        column: name in .parquet files.

    Raises:
        ConfigError: an unknown suffix or name, or several that could be meant; lists them.
        DataError: no such file, files that do not go together, or a damaged one.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f"--data {data}: no such file")
    paths = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    suffixes = sorted({p.suffix.lower() for p in paths})
    if len(suffixes) != 1 or suffixes[0] not in SUFFIXES:
        kinds = ", ".join(suffixes) or "no such file"
        raise ConfigError(f"--data {data}: holds {kinds}; expected one kind of {', '.join(SUFFIXES)}")
    (suffix,) = suffixes
    for flag, name, owner in (("--tensor", tensor, ".safetensors"), ("--column", column, ".parquet")):
        if name is not None and owner != suffix:
            raise ConfigError(f"{flag} {name}: expected with {owner} files, and {data} is {suffix}")
    files = [_opened(suffix, file, tensor if suffix == ".safetensors" else column) for file in paths]
    first = files[0]
    for file in files:
        if (file.name, file.width, file.dtype) != (first.name, first.width, first.dtype):
            raise DataError(
                f"{file.path}: {_shown(file)}, and {first.path.name} holds {_shown(first)}; expected the same in all"
            )
    rows = TensorRows(path, files)
    if rows.count < 2 or rows.width < 1:
        raise DataError(f"{path}: {rows.count} rows of width {rows.width}; expected more")
    return rows


def _opened(suffix: str, path: Path, asked: str | None) -> TensorFile:
    with reading(path, DataError):
        return OPENERS[suffix](path, asked)


def _checked(file: TensorFile, rows: Tensor) -> Tensor:
    """Rows of a file, all of them finite."""
    values = file.read(rows)
    if not all_finite(values):
        row = int(rows[not_finite(values)].min())
        raise DataError(f"{file.path}: row {row} holds a value that is not finite; leave it out")
    return values


def _shown(file: TensorFile) -> str:
    return f"{file.name or 'an array'} of width {file.width}, {str(file.dtype).removeprefix('torch.')}"


def _choose(path: Path, flag: str, asked: str | None, usable: dict[str, str], others: dict[str, str]) -> str:
    """The name that was asked for, or the only usable one; both tables hold name -> what it is."""
    listing = "; ".join(f"{name} ({what})" for name, what in {**usable, **others}.items()) or "nothing"
    if asked is not None:
        if asked not in usable:
            raise ConfigError(f"{flag} {asked}: {path} has no such rows of numbers; it holds {listing}")
        return asked
    if len(usable) == 1:
        return next(iter(usable))
    if not usable:
        raise DataError(f"{path}: no rows of floating-point numbers [rows, width]; it holds {listing}")
    raise ConfigError(f"{flag}: {path} holds several that could be meant: {listing}; name one")


def _safetensors(path: Path, asked: str | None) -> TensorFile:
    usable, others = {}, {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            part = file.get_slice(name)
            good = len(part.get_shape()) == 2 and part.get_dtype() in ("F64", "F32", "F16", "BF16")
            (usable if good else others)[name] = f"{part.get_dtype()} {part.get_shape()}"
        name = _choose(path, "--tensor", asked, usable, others)
        values = file.get_tensor(name)  # mapped, not read
    return TensorFile(path, name, values.shape[0], values.shape[1], values.dtype, lambda rows: values[rows])


def _npy(path: Path, asked: str | None) -> TensorFile:
    # copy-on-write: a tensor must be writable, the file stays as it is
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.ndim != 2 or array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        expected = "expected float32 or float16 [rows, width] (bfloat16 can be kept as .safetensors)"
        raise DataError(f"{path}: {array.dtype} {list(array.shape)}; {expected}")
    dtype = getattr(torch, array.dtype.newbyteorder("=").name)

    def read(rows: Tensor) -> Tensor:
        taken = array[rows.numpy()]
        return torch.from_numpy(taken.astype(taken.dtype.newbyteorder("="), copy=False))

    return TensorFile(path, "", array.shape[0], array.shape[1], dtype, read)


def _parquet(path: Path, asked: str | None) -> TensorFile:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path, memory_map=True)
    usable, others = {}, {}
    for field in file.schema_arrow:
        kind = field.type
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        good = listed and pa.types.is_floating(kind.value_type)
        (usable if good else others)[field.name] = str(kind)
    name = _choose(path, "--column", asked, usable, others)
    first = next(file.iter_batches(batch_size=1, columns=[name]), None)
    kind = file.schema_arrow.field(name).type.value_type
    width = 0 if first is None else len(first.column(0)[0] or ())
    dtype = {"halffloat": torch.float16, "float": torch.float32, "double": torch.float64}[str(kind)]
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    starts = np.cumsum([0, *sizes])

    def read(rows: Tensor) -> Tensor:
        wanted = rows.numpy()
        values = np.empty((len(wanted), width), dtype=str(dtype).removeprefix("torch."))
        for group in np.unique(np.searchsorted(starts, wanted, side="right") - 1).tolist():
            begin = int(starts[group])
            with reading(path, DataError):
                for batch in file.iter_batches(batch_size=CHUNK, row_groups=[group], columns=[name]):
                    here = np.flatnonzero((wanted >= begin) & (wanted < begin + len(batch)))
                    if len(here):
                        values[here] = _lists(batch.column(0), path, begin, width)[wanted[here] - begin]
                    begin += len(batch)
        return torch.from_numpy(values)

    return TensorFile(path, name, file.metadata.num_rows, width, dtype, read)


def _lists(column: Any, path: Path, begin: int, width: int) -> np.ndarray:
    """Lists of one length as an array [n, width]; `begin` is the number of the first row."""
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != width)[0])
        said = "is null" if lengths[row] < 0 else f"holds {lengths[row]} numbers"
        raise DataError(f"{path}: row {begin + row} {said}; expected {width}, as in the first")
    values = column.flatten().to_numpy(zero_copy_only=False)  # a null becomes NaN, which is refused with its row
    return values.reshape(-1, width)


OPENERS: dict[str, Callable[[Path, str | None], TensorFile]] = {
    ".safetensors": _safetensors,
    ".npy": _npy,
    ".parquet": _parquet,
}


def _hash(path: Path) -> dict[str, str]:
    """The SHA-256 of a file; of one over 2 GiB, of its size and 1,024 pieces of 1 MiB from its beginning to its end."""
    size = path.stat().st_size
    if size <= HASHED_WHOLE:
        return {"sha256": sha256_of(path)}
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for piece in range(PIECES):
            stream.seek((size - (1 << 20)) * piece // (PIECES - 1))
            digest.update(stream.read(1 << 20))
    return {"sha256_of_pieces": digest.hexdigest()}
