"""What people and explainers say about latents: labels, notes, bookmarks, names. Collecting again leaves them alone.

    annotations = Annotations("runs/demo")
    annotations.set(17, label="days of the week", bookmark=True)
    annotations.all()[17]["label"]

They are in the run's `annotations.sqlite`, each with the SHA-256 of the weights it was made for: those of other weights
stay in the file and are not shown. Every row carries a hash of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError, parse_json
from sae.features.store.database import Blobs, open_read_only, write_in_place
from sae.features.store.keys import FeatureError
from sae.models.saved import read_description

FILE = "annotations.sqlite"
TABLES = ("annotations", "names", "scores", "steering")
SCHEMA = frozenset({*TABLES, "seals"})
EMPTY: dict[str, Any] = {"label": None, "bookmark": False, "note": None}
LONGEST = 10_000  # characters of a label or note
REMEDY = "repair or delete the file"


class Annotations:
    """One run's labels, notes, bookmarks and explainers' names.

    Raises:
        ConfigError, CorruptError: the folder is no finished run, or the file is damaged.
    """

    def __init__(self, run_folder: str | Path, weights: str | None = None) -> None:
        self.folder = Path(run_folder).expanduser()
        self.path = self.folder / FILE
        self.weights = weights or str(read_description(self.folder)["sha256"])

    def all(self) -> dict[int, dict[str, Any]]:
        """Of every latent that has one of them: {"label": str | None, "bookmark": bool, "note": str | None}."""
        return self._read("annotations")

    def set(self, latent: int, **changes: Any) -> dict[str, Any]:
        """Change some of `label`, `note` (None or "" removes it) and `bookmark`; returns the latent's annotation.

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
        with self._writing() as blobs:
            before = _rows(blobs, "annotations", self.weights, latent)
            value = {**before.get(latent, EMPTY), **changes}
            value = {name: v or None if name != "bookmark" else v for name, v in value.items()}
            self._put(blobs, "annotations", latent, value if value != EMPTY else None)
        return value

    def names(self) -> dict[int, dict[str, Any]]:
        """Names by explainers: `{latent: {"name", "method", "score", ...}}`."""
        return self._read("names")

    def set_names(self, names: Mapping[int, Mapping[str, Any]]) -> None:
        """Save names and their scores (JSON values), replacing earlier ones of the same latents."""
        with self._writing() as blobs:
            for latent, value in names.items():
                self._put(blobs, "names", int(latent), dict(value))

    def scores(self) -> dict[int, dict[str, Any]]:
        """Scores of the present names: `{latent: {scorer: {"words", "detection", ...}}}`, see `explain.score.read`."""
        names = self.names()
        current = {}
        for latent, entries in self._read("scores").items():
            # a latent that got another name has no score yet
            words = {names.get(latent, {}).get(field) for field in ("name", "rule_name")}
            if kept := {scorer: entry for scorer, entry in entries.items() if entry["words"] in words}:
                current[latent] = kept
        return current

    def set_scores(self, scorer: str, scores: Mapping[int, Mapping[str, Any]]) -> None:
        """Save what a scorer found of some names; its earlier scores of the same words by other measures stay."""
        with self._writing() as blobs:
            for latent, entry in scores.items():
                before = _rows(blobs, "scores", self.weights, int(latent)).get(int(latent), {})
                same = before.get(scorer, {}).get("words") == entry["words"]
                merged = {**(before.get(scorer, {}) if same else {}), **entry}
                self._put(blobs, "scores", int(latent), {**before, scorer: merged})

    def steering(self) -> dict[int, dict[str, Any]]:
        """What steering with a latent does, measured: see `sae.features.steer.measure.measure_latent`."""
        return self._read("steering")

    def set_steering(self, latent: int, measured: Mapping[str, Any]) -> None:
        """Save what was measured of a latent (JSON values), in place of an earlier measurement."""
        with self._writing() as blobs:
            self._put(blobs, "steering", latent, dict(measured))

    def _read(self, table: str) -> dict[int, dict[str, Any]]:
        if not self.path.exists() or not self.path.stat().st_size:  # empty: killed before the first transaction
            return {}
        with contextlib.closing(open_read_only(self.path, SCHEMA, recover=True, remedy=REMEDY)) as connection:
            blobs = Blobs(connection, self.path, REMEDY)
            connection.execute("BEGIN")  # the rows and their seal of one moment
            # a file from before there was such a table
            if not _exists(blobs, table):
                return {}
            _check_seal(blobs, table)
            return _rows(blobs, table, self.weights)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Blobs]:
        with write_in_place(self.path, REMEDY, SCHEMA) as blobs:
            sealed = _exists(blobs, "seals")
            blobs.connection.execute("CREATE TABLE IF NOT EXISTS seals (name TEXT PRIMARY KEY, hash BLOB)")
            new = [table for table in TABLES if not _exists(blobs, table)]
            for table in new:
                blobs.connection.execute(
                    f"CREATE TABLE {table} "
                    "(weights TEXT, latent INTEGER, data TEXT, hash BLOB, PRIMARY KEY (weights, latent))"
                )
            if sealed:
                _set_seals(blobs, new)
            for table in TABLES:
                _check_seal(blobs, table)
            yield blobs
            _set_seals(blobs, TABLES)

    def _put(self, blobs: Blobs, table: str, latent: int, value: dict[str, Any] | None) -> None:
        if value is None:
            blobs.connection.execute(f"DELETE FROM {table} WHERE weights = ? AND latent = ?", (self.weights, latent))
            return
        # half a surrogate pair, which JSON allows and nothing can show, becomes "?"
        data = json.dumps(value, allow_nan=False, ensure_ascii=False).encode(errors="replace").decode()
        row = (self.weights, latent, data, _hash(table, self.weights, latent, data))
        blobs.connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", row)


def _rows(blobs: Blobs, table: str, weights: str, latent: int | None = None) -> dict[int, dict[str, Any]]:
    """The rows of a table, checked: of one latent, or of all."""
    only = "" if latent is None else " AND latent = ?"
    values = (weights,) if latent is None else (weights, latent)
    statement = f"SELECT latent, data, hash FROM {table} WHERE weights = ?{only} ORDER BY latent"
    values_of = {}
    for index, data, digest in blobs.query(statement, values):
        if not isinstance(data, str) or _hash(table, weights, index, data) != digest:
            raise CorruptError(f"{blobs.name}: the {table} of latent {index} are damaged; {REMEDY}")
        values_of[index] = parse_json(data)
    return values_of


def _exists(blobs: Blobs, table: str) -> bool:
    return bool(list(blobs.query("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,))))


def _set_seals(blobs: Blobs, tables: Sequence[str]) -> None:
    seals = [(table, _seal(blobs, table)) for table in tables]
    blobs.connection.executemany("INSERT OR REPLACE INTO seals VALUES (?, ?)", seals)


def _seal(blobs: Blobs, table: str) -> bytes:
    """A hash of a table's rows, from which none can vanish unnoticed."""
    digest = hashlib.blake2b(table.encode(), digest_size=16)
    for weights, latent, row in blobs.query(f"SELECT weights, latent, hash FROM {table} ORDER BY weights, latent"):
        digest.update(f"{weights} {latent} {row!r}".encode())
    return digest.digest()


def _check_seal(blobs: Blobs, table: str) -> None:
    """CorruptError where rows are missing; a file from before there were seals has none until it is written again."""
    if not _exists(blobs, "seals"):
        return
    seals = list(blobs.query("SELECT hash FROM seals WHERE name = ?", (table,)))
    if not seals and not list(blobs.query("SELECT 1 FROM seals")):
        return  # the table of seals is new
    if [seal for (seal,) in seals] != [_seal(blobs, table)]:
        raise CorruptError(f"{blobs.name}: rows of {table} are missing or damaged; {REMEDY}")


def _hash(table: str, weights: str, latent: int, data: str) -> bytes:
    return hashlib.blake2b(f"{table} {weights} {latent} {data}".encode(), digest_size=8).digest()
