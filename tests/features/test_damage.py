"""Damage to databases that SQLite does not notice, and schemas of somebody else, are refused by name."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from synthetic_store import synthetic_store

from sae.base.files import CorruptError, publish_json
from sae.features.store.annotations import FILE, Annotations
from sae.features.store.restore import restore
from sae.features.store.search import search
from sae.features.store.store import FeatureStore
from sae.features.store.writer import STORE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    synthetic_store(folder, 64, tokens=4096).close()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER t AFTER INSERT ON parts BEGIN SELECT 1; END",
        "CREATE TABLE other (x)",
        "CREATE INDEX i ON parts(length(data))",
        "CREATE VIRTUAL TABLE v USING fts5(x)",
    ],
)
def test_a_schema_of_somebody_else_is_refused(statement: str, folder: Path) -> None:
    change(folder / STORE, statement)
    with pytest.raises(CorruptError, match=f"{STORE}: holds .* which this package does not make"):
        FeatureStore(folder)


def test_a_computed_column_under_a_known_name_is_refused(folder: Path) -> None:
    change(folder / STORE, "DROP TABLE texts", "CREATE TABLE texts (id INTEGER, text AS (upper('x')))")
    with pytest.raises(CorruptError, match="holds table 'texts'"):
        FeatureStore(folder)


def test_rows_that_vanish_are_noticed(folder: Path) -> None:
    store = FeatureStore(folder)
    (document,) = store.query("SELECT min(id) FROM documents")[0]
    store.close()
    change(folder / STORE, f"DELETE FROM events WHERE id = {document}")
    with pytest.raises(CorruptError, match=f"the events of document {document} are missing"):
        FeatureStore(folder).events_in(document)
    for table in ("records", "documents"):
        change(folder / STORE, f"DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table})")
        with pytest.raises(CorruptError, match="were written; collect again"):
            restore(folder)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE texts SET text = replace(text, 'river', 'liver')", "DELETE FROM words_data WHERE id > 10"],
)
def test_a_search_in_damaged_texts_is_refused(statement: str, folder: Path) -> None:
    assert search(FeatureStore(folder), "river")
    change(folder / STORE, statement)
    with pytest.raises(CorruptError, match="the texts or their index are damaged"):
        search(FeatureStore(folder), "river")


def test_features_of_other_weights_are_refused(folder: Path) -> None:
    publish_json(folder / "config.json", {"format": 3, "autoencoder": {"sha256": "0" * 64}})
    with pytest.raises(CorruptError, match="of other weights"):
        FeatureStore(folder)


@pytest.mark.parametrize(
    "statement", ["DELETE FROM annotations WHERE latent = 1", "UPDATE annotations SET weights = 'y'"]
)
def test_annotations_that_vanish_are_noticed(statement: str, tmp_path: Path) -> None:
    notes = Annotations(tmp_path, "x")
    notes.set(1, label="days")
    notes.set(2, label="months")
    assert set(notes.all()) == {1, 2}
    change(tmp_path / FILE, statement)
    with pytest.raises(CorruptError, match="rows of annotations are missing or damaged"):
        notes.all()
    with pytest.raises(CorruptError, match="rows of annotations are missing or damaged"):
        notes.set(3, label="years")


def test_annotations_from_before_tables_had_hashes_are_read_and_get_them(tmp_path: Path) -> None:
    notes = Annotations(tmp_path, "x")
    notes.set(1, label="days")
    change(tmp_path / FILE, "DROP TABLE seals")
    assert notes.all()[1]["label"] == "days"
    notes.set(2, label="months")
    change(tmp_path / FILE, "DELETE FROM annotations WHERE latent = 1")
    with pytest.raises(CorruptError, match="missing or damaged"):
        notes.all()
