"""Rows of local files: .jsonl, .json, .csv, .tsv, .parquet and .txt, read in order, from any row, in bounded memory.

    for row in FileTable(path, [path], ".jsonl").read(["text"], start=100):
        row["text"]              # of any type; `documents` decides what is usable

All readers but that of .csv and .tsv skip to a row without parsing the rows before it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sae.data.columns import TEXT, Column, DataError, TooLong, columns_of

TEXT_LIMIT = 10_000_000  # bytes of a text; a longer one is more often a broken row than a document
LINE_LIMIT = 8 * TEXT_LIMIT  # bytes of a line: a text of the limit with every character escaped, and other columns
JSON_LIMIT = 1_000_000_000  # a .json file is one value and is read at once
PEEKED_ROWS = 20
DAMAGED = (OSError, EOFError, zlib.error)
"""What is raised for a damaged compressed file."""
COMPRESSIONS = (".gz", ".zst")  # not for .parquet, which is compressed inside
# where pre-tokenized data sets name their tokenizer: in a Parquet file's metadata, or in SAELens's file beside the data
TOKENIZER_KEYS = ("tokenizer_name", "tokenizer")
TOKENIZER_FILE = "sae_lens.json"


Row = Mapping[str, Any]
"""Column -> value, of at least the columns asked for that the row has."""


class Table(Protocol):
    """What `documents` needs of a data set."""

    columns: dict[str, Column]
    """Every column's name -> its kind and first values."""
    labels: tuple[str, ...]
    """The column of documents' labels, if there is one."""
    provenance: dict[str, Any]
    """What identifies the data: path and files' hashes, or name and revision."""

    def read(self, names: Sequence[str], start: int) -> Iterator[Row]:
        """Yield row `start` and all after it, with the columns `names`."""
        ...


# a reader yields rows from row `skip` on and returns how many rows the file has
Reader = Callable[[Path, Sequence[str], int], Generator[Row, None, int]]


class FileTable:
    """Rows of one or several files of the same kind, one file after another."""

    labels: tuple[str, ...] = ()

    def __init__(self, path: Path, files: list[Path], kind: str) -> None:
        self.files = files
        self._reader = READERS[kind]
        self.provenance = {"path": str(path), "files": [stamp(file, path) for file in files]}
        try:
            self.columns = COLUMNS[kind](files)
        except DAMAGED as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        if recorded := recorded_tokenizer(path, files[0] if kind == ".parquet" else None):
            self.provenance["tokenizer"] = recorded

    def read(self, names: Sequence[str], start: int) -> Iterator[Row]:
        for file in self.files:
            try:
                size = yield from self._reader(file, names, start)
            except DAMAGED as error:
                raise DataError(f"{file}: cannot be read to its end ({error})") from error
            start = max(0, start - size)


def kind_of(path: Path) -> str | None:
    """The key of a file's reader, by its ending (before ".gz" or ".zst"); None if it is unknown."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return next((kind for kind in READERS if name.endswith(kind)), None)


def stamp(file: Path, base: Path) -> dict[str, Any]:
    """What identifies a file's content: its size and the SHA-256 of its first and last MiB (all of it up to 2 MiB)."""
    size, piece = file.stat().st_size, 1 << 20
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        digest.update(stream.read(piece))
        stream.seek(max(piece, size - piece))
        digest.update(stream.read(piece))
    name = str(file.relative_to(base)) if file != base else file.name
    return {"name": name, "bytes": size, "sha256_ends": digest.hexdigest()}


def recorded_tokenizer(path: Path, parquet: Path | None = None) -> str | None:
    """The tokenizer that a folder or file of token ids names as theirs; None if it names none."""
    beside = (path if path.is_dir() else path.parent) / TOKENIZER_FILE
    settings: dict[str, Any] = {}
    if beside.is_file():
        settings = _parse(beside.read_bytes(), str(beside))
    elif parquet is not None:
        with _open_parquet(parquet) as file:
            settings = {k.decode("utf-8", "replace"): v for k, v in (file.schema_arrow.metadata or {}).items()}
    name = next((settings[key] for key in TOKENIZER_KEYS if settings.get(key)), None)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name if isinstance(name, str) else None


def _open(path: Path) -> BinaryIO:
    name = path.name.lower()
    if name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
    return gzip.open(path, "rb") if name.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number from 1, line without its end); None for a line over the limit, which is not kept in memory."""
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


def _read_jsonl(path: Path, names: Sequence[str], skip: int) -> Generator[Row, None, int]:
    row = 0
    for number, line in _lines(path):
        if line is not None and not line.strip():
            continue
        row += 1
        if row > skip:
            yield dict.fromkeys(names, TooLong()) if line is None else _parse(line, f"{path}, line {number}")
    return row


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object like {{'text': ...}}, got {type(value).__name__}")
    return value


def _read_json(path: Path, names: Sequence[str], skip: int) -> Generator[Row, None, int]:
    # many files called .json hold one object a line
    if _is_object(next((line for _, line in _lines(path) if line is None or line.strip()), b"")):
        return (yield from _read_jsonl(path, names, skip))
    records = _load_json(path)
    yield from records[skip:]
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


def _read_parquet(path: Path, names: Sequence[str], skip: int) -> Generator[Row, None, int]:
    with _open_parquet(path) as file:
        first, groups = 0, list(range(file.metadata.num_row_groups))
        while groups and first + (size := file.metadata.row_group(groups[0]).num_rows) <= skip:
            first += size
            groups.pop(0)
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=list(names)) if groups else ():
                yield from batch.to_pylist()[max(0, skip - first) :]
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


def _read_text(path: Path, names: Sequence[str], skip: int) -> Generator[Row, None, int]:
    """One document per paragraph; per line if no blank line separates paragraphs in the file's first MiB."""
    with _open(path) as stream:
        by_line = re.search(rb"\n[ \t\r]*\n", stream.read(1 << 20).strip()) is None
    row, lines, length = 0, [], 0
    for number, line in itertools.chain(_lines(path), [(0, b"")]):
        blank = line is not None and not line.strip()
        if not blank:
            length += LINE_LIMIT if line is None else len(line) + 1
            if length <= LINE_LIMIT:
                lines.append(_decode(line or b"", path, number))
        if length and (blank or by_line):
            row += 1
            if row > skip:
                yield {"text": "\n".join(lines) if length <= LINE_LIMIT else TooLong()}
            lines, length = [], 0
    return row


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error


def _read_table(path: Path, names: Sequence[str], skip: int) -> Generator[Row, None, int]:
    row = 0
    for row, record in enumerate(_records_of_table(path), 1):
        if row > skip:
            yield record
    return row


def _records_of_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv or .tsv file, whose first line names the columns; a missing value is None."""
    csv.field_size_limit(LINE_LIMIT)
    tabs = kind_of(path) == ".tsv"
    with _open(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(lines, delimiter="\t" if tabs else ",", strict=True)
        try:
            for record in reader:
                if record.pop(None, None):  # type: ignore[call-overload] - DictReader's key for values without a column
                    raise DataError(f"{path}, line {reader.line_num}: more values than the first line names columns")
                yield record
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num}: not a table in UTF-8 ({error})") from error


def _table_columns(files: list[Path]) -> dict[str, Column]:
    rows = itertools.chain.from_iterable(map(_records_of_table, files))
    return columns_of(list(itertools.islice(rows, PEEKED_ROWS)))


def _json_columns(files: list[Path]) -> dict[str, Column]:
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
                return columns_of(records)
    return columns_of(records)


def _parquet_columns(files: list[Path]) -> dict[str, Column]:
    with _open_parquet(files[0]) as file:
        try:
            first = next(file.iter_batches(batch_size=PEEKED_ROWS), None)
            records = first.to_pylist() if first else []
        except (OSError, ValueError) as error:
            raise DataError(f"{files[0]}: damaged near row 0 ({error})") from error
        return columns_of(records, file.schema_arrow.names)


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
COLUMNS: dict[str, Callable[[list[Path]], dict[str, Column]]] = {
    ".jsonl": _json_columns,
    ".json": _json_columns,
    ".csv": _table_columns,
    ".tsv": _table_columns,
    ".parquet": _parquet_columns,
    ".txt": lambda files: {"text": Column(TEXT, ())},
}
