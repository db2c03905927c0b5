"""SQLite files in which damage is noticed: every blob carries its own hash, which is checked when it is read.

SQLite alone notices few changed bits. A file is written in full beside its place and published by `sae.base.files`, so
that a reader keeps the file it has open while a newer one takes its name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sae.base.files import CorruptError, publish_file
from sae.features.store.keys import FeatureError

WAIT = 10.0  # seconds for another process to finish writing


class Blobs:
    """Tables of compressed blobs with hashes, in an open database. Messages name the file and the remedy."""

    def __init__(
        self, connection: sqlite3.Connection, name: Path, remedy: str = "collect again: sae features RUN"
    ) -> None:
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
    temporary = path.with_name(f".partial-build-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
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
        finally:
            connection.close()

        def copy(stream: BinaryIO) -> None:
            with open(temporary, "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)

        publish_file(path, copy)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_in_place(path: Path, remedy: str) -> Iterator[Blobs]:
    """One transaction on an old or new database; several processes take turns.

    Raises:
        FeatureError: it cannot be written.
        CorruptError: it is damaged.
    """
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        yield Blobs(connection, path, remedy)
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise FeatureError(f"{path}: cannot be written ({error})") from error
    except sqlite3.DatabaseError as error:
        raise CorruptError(f"{path}: cannot be read ({error}); {remedy}") from error
    finally:
        connection.close()


def open_read_only(path: Path, *, recover: bool = False) -> sqlite3.Connection:
    """A connection that changes no data; several threads may use it, one at a time.

    Args:
        path: the database.
        recover: this package writes the file in place; let SQLite undo the transaction of a writer that was killed.

    Raises:
        CorruptError: it is no database.
    """
    mode = "rw" if recover and os.access(path, os.W_OK) else "ro"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return connection
    except sqlite3.DatabaseError as error:
        raise CorruptError(f"{path}: cannot be read ({error})") from error


def has_fts5(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite has the full-text index."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


def _sealed(table: str, index: int, data: bytes) -> tuple[int, bytes, bytes]:
    packed = zlib.compress(data, 1)
    return index, packed, _hash(table, index, packed)


def _hash(table: str, index: int, data: bytes) -> bytes:
    """The hash of a blob and its id: a blob under another id is not what was written."""
    return hashlib.blake2b(data, digest_size=8, person=table.encode()[:16], salt=index.to_bytes(8, "little")).digest()
