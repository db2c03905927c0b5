"""Rows of local files: .jsonl, .json, .parquet and .txt, read in order, from any row, in bounded memory.

A reader yields the text field's value of each row as it finds it, whatever its type; `documents` decides what is
usable. Every reader skips to a row without parsing what comes before it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

# longest text that is kept, in bytes; a longer one is a broken row more often than a document
TEXT_LIMIT = 10_000_000
# longest line that is parsed: a text of the limit with every character escaped, and its neighbours
LINE_LIMIT = 8 * TEXT_LIMIT
# a .json file is one value and so is read whole
JSON_LIMIT = 1_000_000_000
PEEKED_ROWS = 20


class DataError(ValueError):
    """A data set that cannot be read as asked; the message names it, the cause and the remedy."""


class TooLong:
    """Stands for a value that was not read because it is longer than the limit."""


class Rows(Protocol):
    """What `documents` needs of a data set."""

    columns: dict[str, bool]
    """Every column's name -> whether it holds text."""
    provenance: dict[str, Any]
    """What identifies the data: path and files' hashes, or name and revision."""

    def read(self, field: str, start: int) -> Iterator[tuple[object, str | None]]:
        """Yield (value of column `field`, label) of row `start` and all after it."""
        ...


# a reader yields values from row `skip` on and returns how many rows the file has
Reader = Callable[[Path, str, int], Generator[object, None, int]]


class FileRows:
    """Rows of one or several files of the same kind, one file after another."""

    def __init__(self, path: Path, files: list[Path], kind: str) -> None:
        self.files = files
        self._reader = READERS[kind]
        self.provenance = {"path": str(path), "files": [stamp(file, path) for file in files]}
        self.columns = COLUMNS[kind](files)

    def read(self, field: str, start: int) -> Iterator[tuple[object, str | None]]:
        for file in self.files:
            rows = 0
            reader = self._reader(file, field, start)
            while True:
                try:
                    value = next(reader)
                except StopIteration as end:
                    rows = end.value
                    break
                except (OSError, EOFError) as error:
                    raise DataError(f"{file}: cannot be read to its end ({error})") from error
                yield value, None
            start = max(0, start - rows)


def kind_of(path: Path) -> str | None:
    """The reader's name for a file, by its ending (".gz" is looked through); None where the ending is unknown."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in READERS if name.endswith(kind)), None)


def stamp(file: Path, base: Path) -> dict[str, Any]:
    """What tells a changed file: its size and the SHA-256 of its first and last MiB (all of it, up to 2 MiB)."""
    size, piece = file.stat().st_size, 1 << 20
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        digest.update(stream.read(piece))
        stream.seek(max(piece, size - piece))
        digest.update(stream.read(piece))
    name = str(file.relative_to(base)) if file != base else file.name
    return {"name": name, "bytes": size, "sha256_ends": digest.hexdigest()}


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number from 1, line without its end); None for a line over the limit, which is never held whole."""
    with _open(path) as stream:
        number = 0
        while line := stream.readline(LINE_LIMIT):
            number += 1
            if len(line) < LINE_LIMIT or line.endswith(b"\n"):
                yield number, line.rstrip(b"\r\n")
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(LINE_LIMIT)
            yield number, None


def _read_jsonl(path: Path, field: str, skip: int) -> Generator[object, None, int]:
    row = 0
    for number, line in _lines(path):
        if line is not None and not line.strip():
            continue
        row += 1
        if row > skip:
            yield TooLong() if line is None else _parse(line, f"{path}, line {number}").get(field)
    return row


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object like {{'text': ...}}, got {type(value).__name__}")
    return value


def _read_json(path: Path, field: str, skip: int) -> Generator[object, None, int]:
    # many files called .json hold one object a line
    if _is_object(next((line for _, line in _lines(path) if line is None or line.strip()), b"")):
        return (yield from _read_jsonl(path, field, skip))
    records = _load_json(path)
    for record in records[skip:]:
        yield record.get(field)
    return len(records)


def _is_object(line: bytes | None) -> bool:
    try:
        return line is not None and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _load_json(path: Path) -> list[dict[str, Any]]:
    with _open(path) as stream:
        data = stream.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise DataError(f"{path}: over {JSON_LIMIT:,} bytes; one object a line (.jsonl) can be streamed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise DataError(f"{path}: expected a list of objects, or one object a line")
    return value


def _read_parquet(path: Path, field: str, skip: int) -> Generator[object, None, int]:
    with _open_parquet(path) as file:
        first, groups = 0, list(range(file.metadata.num_row_groups))
        while groups and first + (size := file.metadata.row_group(groups[0]).num_rows) <= skip:
            first += size
            groups.pop(0)
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=[field]) if groups else ():
                yield from batch.column(0).to_pylist()[max(0, skip - first) :]
                first += batch.num_rows
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged near row {first} ({error})") from error
        return file.metadata.num_rows


def _open_parquet(path: Path):
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error


def _read_text(path: Path, field: str, skip: int) -> Generator[object, None, int]:
    """One document per paragraph; per line where no blank line parts the file's first MiB."""
    with _open(path) as stream:
        by_line = re.search(rb"\n[ \t\r]*\n", stream.read(1 << 20).strip()) is None
    row, held, length = 0, [], 0
    for number, line in _lines(path):
        blank = line is not None and not line.strip()
        if not blank:
            length += LINE_LIMIT if line is None else len(line) + 1
            if length <= LINE_LIMIT:
                held.append(_decode(line or b"", path, number))
        if length and (blank or by_line):
            row += 1
            if row > skip:
                yield "\n".join(held) if length <= LINE_LIMIT else TooLong()
            held, length = [], 0
    if length:
        row += 1
        if row > skip:
            yield "\n".join(held) if length <= LINE_LIMIT else TooLong()
    return row


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error


def _json_columns(files: list[Path]) -> dict[str, bool]:
    records: list[dict[str, Any]] = []
    for file in files:
        if kind_of(file) == ".json" and not _is_object(
            next((s for _, s in _lines(file) if s is None or s.strip()), b"")
        ):
            records += _load_json(file)[:PEEKED_ROWS]
            continue
        for number, line in _lines(file):
            if line is not None and line.strip():
                records.append(_parse(line, f"{file}, line {number}"))
            if len(records) >= PEEKED_ROWS:
                return text_columns(records)
    return text_columns(records)


def text_columns(records: list[dict[str, Any]]) -> dict[str, bool]:
    """Columns of the first rows -> whether every value there that is not null is text."""
    values: dict[str, list[object]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    return {
        name: all(isinstance(v, str) for v in found if v is not None) and any(v is not None for v in found)
        for name, found in values.items()
    }


def _parquet_columns(files: list[Path]) -> dict[str, bool]:
    from pyarrow import types

    with _open_parquet(files[0]) as file:
        return {f.name: types.is_string(f.type) or types.is_large_string(f.type) for f in file.schema_arrow}


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
COLUMNS: dict[str, Callable[[list[Path]], dict[str, bool]]] = {
    ".jsonl": _json_columns,
    ".json": _json_columns,
    ".parquet": _parquet_columns,
    ".txt": lambda files: {"text": True},
}
