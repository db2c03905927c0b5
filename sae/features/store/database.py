"""SQLite files in which damage is noticed: every blob carries its own hash, which is checked when it is read.

SQLite alone notices few changed bits. A file is written in full beside its place and published by `sae.base.files`, so
that a reader keeps the file it has open while a newer one takes its name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sae.base import disk
from sae.base.files import CorruptError, publish_path
from sae.features.store.keys import FeatureError

WAIT = 10.0  # seconds for another process to finish writing
COLLECT_AGAIN = "collect again: sae features RUN"
WORDS = "CREATE VIRTUAL TABLE words USING fts5(text, content='texts', content_rowid='id')"
VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL", re.IGNORECASE)
COMPUTED = re.compile(r"\b(GENERATED|CHECK|DEFAULT)\b|\bAS\s*\(", re.IGNORECASE)
"""Parts of a table that run an expression."""


class Blobs:
    """Tables of compressed blobs with hashes, in an open database. Messages name the file and the remedy."""

    def __init__(self, connection: sqlite3.Connection, name: Path, remedy: str = COLLECT_AGAIN) -> None:
        self.connection, self.name, self.remedy = connection, name, remedy

    def create(self, table: str) -> None:
        """Make a table of blobs under integer ids."""
        self.connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, data BLOB, hash BLOB)")

    def put(self, table: str, rows: Iterable[tuple[int, bytes]]) -> None:
        """Write blobs."""
        self.connection.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (_sealed(table, i, d) for i, d in rows)
        )

    def get(self, table: str, index: int) -> bytes | None:
        """A blob, or None where there is none.

        Raises:
            CorruptError: it is not what was written.
        """
        rows = list(self.query(f"SELECT data, hash FROM {table} WHERE id = ?", (index,)))
        return self.opened(table, index, *rows[0]) if rows else None

    def all(self, table: str) -> Iterable[tuple[int, bytes]]:
        """Every id and blob of a table, by id; CorruptError as `get`."""
        for index, data, digest in self.query(f"SELECT id, data, hash FROM {table} ORDER BY id"):
            yield index, self.opened(table, index, data, digest)

    def opened(self, table: str, index: int, data: bytes, digest: bytes) -> bytes:
        """Check and unpack a row."""
        if not isinstance(data, bytes) or not isinstance(digest, bytes) or _hash(table, index, data) != digest:
            raise CorruptError(f"{self.name}: {table} {index} is damaged; {self.remedy}")
        return zlib.decompress(data)

    def query(self, statement: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows that a statement gives, one by one; damage that SQLite notices becomes a CorruptError."""
        try:
            yield from self.connection.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise CorruptError(f"{self.name}: cannot be read ({error}); {self.remedy}") from error


def build_database(path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Write a new database: `fill` gets an empty one, which takes the name `path` once it is complete.

    Raises:
        OSError: no space, or the disk fails; what was there before is untouched.
    """
    with publish_path(path) as temporary:
        disk.write_by(temporary, lambda: _build(temporary, path, fill))


def _build(temporary: Path, path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
        try:
            # a draft left by a crash is thrown away, so it needs no journal
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            fill(connection)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            # SQLite reports what the system refused in words alone
            number = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def write_in_place(path: Path, remedy: str, tables: frozenset[str]) -> Iterator[Blobs]:
    """One transaction on an old or new database; several processes take turns.

    Args:
        path: the database.
        remedy: what to do with a damaged one.
        tables: names of the tables that may be in it.

    Raises:
        FeatureError: it cannot be written.
        CorruptError: it is damaged.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT, isolation_level=None)) as connection:
            _distrust(connection)
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            _check_schema(connection, path, tables, remedy)
            yield Blobs(connection, path, remedy)
            disk.commit(path, lambda: _commit(connection))
    except sqlite3.OperationalError as error:
        raise FeatureError(f"{path}: cannot be written ({error})") from error
    except sqlite3.DatabaseError as error:
        raise CorruptError(f"{path}: cannot be read ({error}); {remedy}") from error


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def open_read_only(
    path: Path, tables: frozenset[str], *, recover: bool = False, remedy: str = COLLECT_AGAIN
) -> sqlite3.Connection:
    """A connection that changes no data; several threads may use it, one at a time.

    Args:
        path: the database, maybe made by somebody else.
        tables: names of the tables that may be in it. Anything else that a schema can hold is refused: views, triggers
            and computed columns run expressions of whoever made the file.
        recover: this package writes the file in place; let SQLite undo the transaction of a writer that was killed.
        remedy: what to do with a damaged one.

    Raises:
        CorruptError: it is no database, or not one of this package.
    """
    mode = "rw" if recover and os.access(path, os.W_OK) else "ro"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, check_same_thread=False)
        _distrust(connection)
        connection.execute("PRAGMA query_only = ON")
        _check_schema(connection, path, tables, remedy)
        return connection
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # of a schema that is no text
        raise CorruptError(f"{path}: cannot be read ({error}); {remedy}") from error


def _distrust(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _check_schema(connection: sqlite3.Connection, path: Path, tables: frozenset[str], remedy: str) -> None:
    """Refuse a schema with anything but these tables, their own indices, and an index of words by fts5.

    Raises:
        CorruptError: names what is there.
    """
    for kind, name, statement in connection.execute("SELECT type, name, sql FROM sqlite_schema"):
        known = (kind == "index" and statement is None) or (
            kind == "table"
            and name in tables
            and isinstance(statement, str)
            and not COMPUTED.search(statement)
            and (not VIRTUAL.match(statement) or statement == WORDS)
        )
        if not known:
            raise CorruptError(f"{path}: holds {kind} {name!r}, which this package does not make; {remedy}")


def has_fts5(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite has the full-text index."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


def _sealed(table: str, index: int, data: bytes) -> tuple[int, bytes, bytes]:
    packed = zlib.compress(data, 1)
    return index, packed, _hash(table, index, packed)


def _hash(table: str, index: int, data: bytes) -> bytes:
    """The hash of a blob and its id: a blob under another id is not what was written."""
    return hashlib.blake2b(data, digest_size=8, person=table.encode()[:16], salt=index.to_bytes(8, "little")).digest()
