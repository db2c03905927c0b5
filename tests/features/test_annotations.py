"""Labels, notes, bookmarks and names: kept apart, under the weights they were made for, whole after any kill."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from synthetic_store import synthetic_store

from sae.base.files import CorruptError
from sae.features.store.annotations import FILE, Annotations
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore

NOTHING = {"label": None, "bookmark": False, "note": None}


def test_what_is_set_is_read_and_can_be_taken_away(tmp_path: Path) -> None:
    annotations = Annotations(tmp_path, "w")
    assert annotations.all() == annotations.names() == {}
    annotations.set(3, label="days <b>", bookmark=True)
    annotations.set(3, note="‮ note\x00 🎉")
    again = Annotations(tmp_path, "w")
    assert again.all() == {
        3: {"label": "days <b>", "bookmark": True, "note": "‮ note\x00 🎉"},
    }
    assert annotations.set(3, label="", bookmark=False) == {**NOTHING, "note": "‮ note\x00 🎉"}
    annotations.set(3, note=None)
    assert again.all() == {}


def test_names_replace_earlier_ones_and_leave_labels_alone(tmp_path: Path) -> None:
    annotations = Annotations(tmp_path, "w")
    annotations.set(1, label="mine")
    annotations.set_names({1: {"name": "a", "score": 0.5}, 2: {"name": "b"}})
    annotations.set_names({1: {"name": "c", "score": 0.75}})
    assert annotations.names() == {1: {"name": "c", "score": 0.75}, 2: {"name": "b"}}
    assert annotations.all()[1]["label"] == "mine"


def test_collecting_again_leaves_labels_and_other_weights_hide_them(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, 20, tokens=500)
    store.annotations.set(7, label="kept")
    again = synthetic_store(tmp_path, 20, seed=1, tokens=500)
    assert again.annotations.all()[7]["label"] == "kept"
    assert Annotations(tmp_path, "retrained").all() == {}
    assert FeatureStore(tmp_path).annotations.all() == {7: {**NOTHING, "label": "kept"}}


@pytest.mark.parametrize("changes", [{"labl": "x"}, {"label": 3}, {"bookmark": "yes"}, {"note": "x" * 10_001}])
def test_wrong_fields_and_values_are_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(FeatureError, match=next(iter(changes))):
        Annotations(tmp_path, "w").set(1, **changes)
    with pytest.raises(FeatureError, match="latent -1"):
        Annotations(tmp_path, "w").set(-1, label="x")
    assert not (tmp_path / FILE).exists()


def test_changed_rows_and_files_are_noticed(tmp_path: Path) -> None:
    annotations = Annotations(tmp_path, "w")
    annotations.set(1, label="true")
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("UPDATE annotations SET data = replace(data, 'true', 'lies')")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptError, match="latent 1 are damaged"):
        annotations.all()
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    for use in (annotations.all, lambda: annotations.set(1, label="x")):
        with pytest.raises(CorruptError, match=FILE):
            use()


def test_a_file_from_before_there_were_scores_takes_them(tmp_path: Path) -> None:
    annotations = Annotations(tmp_path, "w")
    annotations.set_names({1: {"name": "a"}})
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("DROP TABLE scores")
        connection.execute("DELETE FROM seals WHERE name = 'scores'")
    connection.close()
    assert annotations.scores() == {}
    annotations.set_scores("rules", {1: {"words": "a", "detection": 1}})
    annotations.set_scores("rules", {1: {"words": "a", "fuzzing": 2}})
    annotations.set_scores("local:m", {1: {"words": "a", "detection": 3}})
    both = {"rules": {"words": "a", "detection": 1, "fuzzing": 2}, "local:m": {"words": "a", "detection": 3}}
    assert annotations.scores() == {1: both}
    # a seal that is missing beside its table is noticed
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("DELETE FROM seals WHERE name = 'scores'")
    connection.close()
    for use in (annotations.scores, lambda: annotations.set(1, label="x")):
        with pytest.raises(CorruptError, match="rows of scores are missing"):
            use()


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda i: Annotations(tmp_path, "w").set(i % 10, **{("label", "note")[i % 2]: str(i)}), range(40))
        )
    held = Annotations(tmp_path, "w").all()
    assert len(held) == 10
    assert all(held[i]["label" if i % 2 == 0 else "note"] is not None for i in range(10))


def test_a_kill_while_writing_leaves_whole_rows(tmp_path: Path) -> None:
    code = (
        "from sae.features.store.annotations import Annotations\n"
        f"a = Annotations({str(tmp_path)!r}, 'w')\n"
        "for i in range(10**6): a.set(i % 50, label=f'label {i}', note='n' * 3000)\n"
    )
    for wait in (0.05, 0.2):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while not (tmp_path / FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        held = Annotations(tmp_path, "w").all()
        assert all(value["label"].startswith("label ") and len(value["note"]) == 3000 for value in held.values())
        Annotations(tmp_path, "w").set(99, label="label afterwards", note="n" * 3000)


def test_a_transaction_cut_in_the_middle_is_undone_by_the_next_reader(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    annotations = Annotations(tmp_path, "w")
    for latent in range(20):
        annotations.set(latent, label="before", note="n" * 5000)
    connection = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # pages go to the file before the end, as in a large transaction
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE annotations SET data = replace(data, 'before', 'halfway')")
    for name in (FILE, f"{FILE}-journal"):  # what a kill leaves
        shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    connection.close()
    assert b"halfway" in (tmp_path / "killed" / FILE).read_bytes()
    held = Annotations(tmp_path / "killed", "w").all()
    assert [value["label"] for value in held.values()] == ["before"] * 20
