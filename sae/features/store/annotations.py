"""What people and explainers say about latents: labels, notes, bookmarks, names. Collecting again leaves them alone.

    annotations = Annotations("runs/demo")
    annotations.set(17, label="days of the week", bookmark=True)
    annotations.get([17, 18])[17]["label"]

They lie in the run's `annotations.sqlite`, each with the SHA-256 of the weights it was made for: those of other weights
are kept, and not shown. Every row carries a hash of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError
from sae.features.store.database import Blobs, open_read_only
from sae.features.store.keys import FeatureError
from sae.models.saved import read_description

FILE = "annotations.sqlite"
TABLES = ("annotations", "names")
EMPTY: dict[str, Any] = {"label": None, "bookmark": False, "note": None}
LONGEST = 10_000  # characters of a label or note
REMEDY = "mend or delete the file"
WAIT = 10.0  # seconds for another process to finish writing


class Annotations:
    """Labels, notes and bookmarks, and names by explainers, of one run's latents.

    Raises:
        ConfigError, CorruptError: the folder is no finished run, or the file is damaged.
    """

    def __init__(self, run_folder: str | Path, weights: str | None = None) -> None:
        self.folder = Path(run_folder).expanduser()
        self.path = self.folder / FILE
        self.weights = weights or str(read_description(self.folder)["sha256"])

    def all(self) -> dict[int, dict[str, Any]]:
        """Every latent that has a label, a note or a bookmark."""
        return self._read("annotations")

    def get(self, latents: Iterable[int]) -> dict[int, dict[str, Any]]:
        """`{latent: {"label": str | None, "bookmark": bool, "note": str | None}}` of these latents."""
        held = self.all()
        return {latent: held.get(latent, dict(EMPTY)) for latent in latents}

    def set(self, latent: int, **changes: Any) -> dict[str, Any]:
        """Change some of `label`, `note` (None or "" takes it away) and `bookmark`; returns what the latent now has.

        Raises:
            FeatureError: another field, a wrong type, or over 10,000 characters.
        """
        for name, value in changes.items():
            wanted = bool if name == "bookmark" else (str, type(None))
            if name not in EMPTY or not isinstance(value, wanted):
                raise FeatureError(f"{name} {value!r}: expected label or note (text), or bookmark (true or false)")
            if isinstance(value, str) and len(value) > LONGEST:
                raise FeatureError(f"{name}: {len(value)} characters; expected at most {LONGEST}")
        if latent < 0:
            raise FeatureError(f"latent {latent}: expected 0 or more")
        with self._writing() as connection:
            found = _rows(connection, self.path, "annotations", self.weights, latent)
            value = {**found.get(latent, EMPTY), **changes}
            value = {name: v or None if name != "bookmark" else v for name, v in value.items()}
            self._put(connection, "annotations", latent, value if value != EMPTY else None)
        return value

    def names(self) -> dict[int, dict[str, Any]]:
        """What explainers said: `{latent: {"name", "method", "score", ...}}`."""
        return self._read("names")

    def set_names(self, names: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep names and their scores (JSON values), in place of earlier ones of the same latents."""
        with self._writing() as connection:
            for latent, value in names.items():
                self._put(connection, "names", int(latent), dict(value))

    def _read(self, table: str) -> dict[int, dict[str, Any]]:
        if not self.path.exists():
            return {}
        with contextlib.closing(open_read_only(self.path, recover=True)) as connection:
            return _rows(connection, self.path, table, self.weights)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; several processes take turns."""
        connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} "
                    "(weights TEXT, latent INTEGER, data TEXT, hash BLOB, PRIMARY KEY (weights, latent))"
                )
            yield connection
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise _unusable(self.path, error) from error
        finally:
            connection.close()

    def _put(self, connection: sqlite3.Connection, table: str, latent: int, value: dict[str, Any] | None) -> None:
        if value is None:
            connection.execute(f"DELETE FROM {table} WHERE weights = ? AND latent = ?", (self.weights, latent))
            return
        data = json.dumps(value, allow_nan=False)
        row = (self.weights, latent, data, _hash(table, self.weights, latent, data))
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", row)


def _rows(
    connection: sqlite3.Connection, path: Path, table: str, weights: str, latent: int | None = None
) -> dict[int, dict[str, Any]]:
    """The rows of a table, checked; of one latent, or of all."""
    only = "" if latent is None else " AND latent = ?"
    values = (weights,) if latent is None else (weights, latent)
    statement = f"SELECT latent, data, hash FROM {table} WHERE weights = ?{only} ORDER BY latent"
    found = {}
    for index, data, digest in Blobs(connection, path, REMEDY).query(statement, values):
        if not isinstance(data, str) or _hash(table, weights, index, data) != digest:
            raise CorruptError(f"{path}: what {table} holds of latent {index} is damaged; {REMEDY}")
        found[index] = json.loads(data)
    return found


def _hash(table: str, weights: str, latent: int, data: str) -> bytes:
    return hashlib.blake2b(f"{table} {weights} {latent} {data}".encode(), digest_size=8).digest()


def _unusable(path: Path, error: sqlite3.DatabaseError) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return FeatureError(f"{path}: cannot be written ({error})")
    return CorruptError(f"{path}: cannot be read ({error}); {REMEDY}")
