"""`sae features` on a tiny run: right numbers; the same ones after a kill or resume, by two processes, from a store."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
from finished_runs import finished_run
from sae.base.files import publish_json, read_json
from sae.cli.main import parse
from sae.config import CollectConfig, ConfigError
from sae.features.collect.collect import collect
from sae.features.store import keys
from sae.features.store.store import FeatureStore, read_info
from sae.features.store.writer import STORE
from sae.harvest.store import DiskStore, fill_store
from sae.harvest.stream import ORDINARY
from sae.runs.text import Run

TOKENS = 6000


@pytest.fixture(scope="module")
def trained(tiny_model: Path, corpus: Path) -> Run:
    return finished_run(tiny_model, corpus)


@pytest.fixture(scope="module")
def whole(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the features of one unbroken pass."""
    folder = copy_of(trained, tmp_path_factory.mktemp("whole"))
    collect(folder, CollectConfig(tokens=TOKENS))
    return folder


def copy_of(trained: Run, folder: Path) -> Path:
    """A finished run's folder without features."""
    shutil.copytree(trained.folder, folder / "run", ignore=shutil.ignore_patterns("features*"))
    return folder / "run"


def content(folder: Path) -> dict[str, list]:
    """Everything in a store, but for when it was written and how often."""
    info = read_info(folder / STORE)
    found: dict[str, list] = {
        "info": [{name: v for name, v in info.items() if name not in ("collected_at", "revision")}]
    }
    connection = sqlite3.connect(folder / STORE)
    for table in ("records", "documents", "events", "texts"):
        found[table] = connection.execute(f"SELECT * FROM {table} ORDER BY id").fetchall()
    connection.close()
    found["scalars"] = FeatureStore(folder).scalars.tolist()
    return found


def assert_same_store(a: Path, b: Path) -> None:
    left, right = content(a), content(b)
    for name, rows in left.items():
        assert repr(rows) == repr(right[name]), name  # as text: NaN equals itself


def test_statistics_are_those_of_the_codes(trained: Run, whole: Path) -> None:
    store = FeatureStore(whole)
    lm = trained.load_language_model(torch.device("cpu"))
    harvest = trained.harvest(lm, split="train")
    dense, left_out, seen = [], {"bos": 0, "special": 0, "sink": 0}, 0
    for step in harvest.batches():
        rows = step.rows.select((step.rows.kind == ORDINARY).nonzero().squeeze(1))
        with torch.no_grad():
            dense.append(trained.model.encode(trained.inputs_of(rows)).to_dense())
        for i, kind in enumerate(("bos", "special", "sink"), 1):
            left_out[kind] += int((step.rows.kind == i).sum())
        seen += len(step.rows.kind)
        if seen >= TOKENS:
            break
    codes = torch.cat(dense).double().numpy()
    assert (store.info["tokens"], store.info["left_out"]) == (len(codes), left_out)
    assert left_out["bos"] > 50
    np.testing.assert_array_equal(store.scalars["count"], (codes > 0).sum(0))
    np.testing.assert_array_equal(store.scalars["max"], codes.max(0))
    for latent in (0, 5, 77, 127):
        record = store.record(latent)
        assert record["sum"] == pytest.approx(codes[:, latent].sum(), rel=1e-12)
        assert record["sum_sq"] == pytest.approx((codes[:, latent] ** 2).sum(), rel=1e-12)
        assert sum(record["histogram"]["counts"]) + record["histogram"]["zeros"] == len(codes)
        assert record["density"] == record["count"] / len(codes)


def test_examples_stand_where_the_text_says(trained: Run, whole: Path) -> None:
    store = FeatureStore(whole)
    lm = trained.load_language_model(torch.device("cpu"))
    texts = {d.index: d.text for d in trained.harvest(lm, split="train").documents.iterate()}
    checked = 0
    for latent in range(0, 128, 9):
        for example in store.record(latent)["examples"][::11]:
            document = store.document(example["document"])
            part = slice(example["start"], example["start"] + len(example["tokens"]))
            assert example["tokens"] == document["tokens"][part]
            assert example["token_ids"] == document["token_ids"][part]
            assert example["values"][example["peak"]] == example["value"]
            assert example["start"] + example["peak"] == example["position"]
            assert texts[example["document"]].startswith("".join(document["tokens"]))
            checked += 1
    assert checked > 50


def test_a_resumed_pass_ends_with_the_unbroken_ones_bits(trained: Run, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    for tokens in (1000, 3000, TOKENS):
        collect(folder, CollectConfig(tokens=tokens, resume=tokens > 1000))
    assert_same_store(whole, folder)
    # nothing is left to do
    revision = read_info(folder / STORE)["revision"]
    collect(folder, CollectConfig(tokens=TOKENS, resume=True))
    assert read_info(folder / STORE)["revision"] == revision


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_pass_leaves_a_readable_store_and_goes_on(
    signum: int, trained: Run, whole: Path, tmp_path: Path
) -> None:
    folder = copy_of(trained, tmp_path)
    arguments = [sys.executable, "-m", "sae", "features", str(folder), "--tokens", str(TOKENS), "--save-every", "0"]
    process = forked.start(arguments)
    deadline = time.monotonic() + 120
    while not (folder / STORE).exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if signum == signal.SIGTERM else -9)
    if signum == signal.SIGTERM:
        assert f"sae features {folder} --resume --tokens {TOKENS}" in said
    store = FeatureStore(folder)
    assert not store.info["finished"]
    assert 0 < store.info["progress"] < 1
    assert store.record(int(store.scalars["count"].argmax()))["examples"]
    collect(folder, CollectConfig(tokens=TOKENS, resume=True))
    assert_same_store(whole, folder)
    assert not list(folder.glob(".partial*"))


def test_two_processes_give_the_store_of_one(trained: Run, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    done = forked.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sae",
         "features", folder, "--tokens", TOKENS, "--save-every", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_store(whole, folder)


def test_stored_activations_give_the_events_of_live_text(trained: Run, whole: Path, tmp_path: Path) -> None:
    live = FeatureStore(whole)
    identity = {
        "format": 1, "model": trained.config.harvest.model, "precision": "float32",
        "sites": {site.name: site.width for site in trained.sites},
    }  # fmt: skip
    lm = trained.load_language_model(torch.device("cpu"))
    store = DiskStore(tmp_path / "store", identity)
    fill_store(store, trained.harvest(lm, split="train"), tokens=live.info["tokens"], progress=lambda n: None)
    folder = copy_of(trained, tmp_path)
    collect(folder, CollectConfig(tokens=2_000, store=tmp_path / "store"))
    collect(folder, CollectConfig(tokens=TOKENS, store=tmp_path / "store", resume=True))
    stored = FeatureStore(folder)
    assert stored.info["tokens"] == live.info["tokens"]
    np.testing.assert_array_equal(stored.scalars["count"], live.scalars["count"])
    for latent in range(0, 128, 5):
        a, b = live.raw(latent), stored.raw(latent)
        for name, (place, value, _) in a.events.items():
            # products of other batch sizes differ in their last bits, which may change the order of near equals
            np.testing.assert_allclose(np.sort(value), np.sort(b.events[name][1]), rtol=1e-4)
            documents = [set(keys.document_of(torch.from_numpy(p.copy())).tolist()) for p in (place, b.events[name][0])]
            assert len(documents[0] ^ documents[1]) <= 2
        place = a.events["uniform"][0]
        np.testing.assert_array_equal(place, b.events["uniform"][0])
    example = stored.record(int(stored.scalars["count"].argmax()))["examples"][40]
    shown = live.document(example["document"])["tokens"][example["start"] : example["position"] + 1]
    assert example["tokens"][: len(shown)] == shown


def test_the_held_out_part_has_other_documents(trained: Run, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    command = parse(["features", str(folder), "--tokens", "1500", "--split", "heldout"])
    report = command.run()
    assert report["tokens"] + sum(report["left_out"].values()) >= 1500
    assert report["latents"] == 128
    documents = {row[0] for row in FeatureStore(folder).query("SELECT id FROM documents")}
    assert not documents & {row[0] for row in FeatureStore(whole).query("SELECT id FROM documents")}


def test_sink_tokens_are_left_out_counted_and_still_shown(trained: Run, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    record = read_json(folder / "config.json")
    site = trained.inputs[0].name
    # as if a third of the tokens were over the limit
    lm = trained.load_language_model(torch.device("cpu"))
    rows = next(iter(trained.harvest(lm, split="train").batches())).rows
    norms = rows.activations[site].norm(dim=1)[rows.kind == ORDINARY]
    record["harvest"]["norm_limits"] = {site: norms.sort().values[len(norms) * 2 // 3].item()}
    publish_json(folder / "config.json", record)
    collect(folder, CollectConfig(tokens=2000))
    store = FeatureStore(folder)
    left_out = store.info["left_out"]
    assert left_out["sink"] > 300
    assert 2000 <= store.info["tokens"] + sum(left_out.values()) < 2000 + 512
    latent = int(store.scalars["count"].argmax())
    for example in store.record(latent)["examples"]:
        assert len(example["tokens"]) == example["peak"] + 1 + min(
            8, len(store.tokens(example["document"])) - 1 - example["position"]
        )
        assert "…" not in example["tokens"]


def with_small_files(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, 200 << 10))
    forked.command(arguments)


def test_a_full_disk_leaves_the_store_that_was_there(trained: Run, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    for name in (STORE, "features.scalars.npy"):
        shutil.copy(whole / name, folder / name)
    before = content(folder)
    done = forked.finished(forked.Forked(with_small_files, ["features", str(folder), "--tokens", "3000"]), 120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert STORE in done.stderr.splitlines()[-1] or "features" in done.stderr.splitlines()[-1]
    assert repr(content(folder)) == repr(before)
    assert not list(folder.glob(".partial*"))


def test_what_does_not_fit_is_refused_by_name(trained: Run, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path)
    with pytest.raises(ConfigError, match="no features to resume"):
        collect(folder, CollectConfig(resume=True))
    with pytest.raises(ConfigError, match="seed = 0, now it is 1"):
        collect(whole, CollectConfig(tokens=TOKENS, resume=True, seed=1))
    with pytest.raises(ConfigError, match="split = 'train', now it is 'all'"):
        collect(whole, CollectConfig(tokens=TOKENS, resume=True, split="all"))
    with pytest.raises(ConfigError, match="no store of activations"):
        collect(folder, CollectConfig(store=tmp_path))
    identity = {"format": 1, "model": "other", "precision": "float32", "sites": {"resid_post.1": 32}}
    DiskStore(tmp_path / "store", identity)
    with pytest.raises(ConfigError, match="it is of the model other"):
        collect(folder, CollectConfig(store=tmp_path / "store"))
    with pytest.raises(ConfigError, match="--tokens 0"):
        CollectConfig(tokens=0)


def test_a_second_collection_of_a_run_is_refused(trained: Run, tmp_path: Path) -> None:
    from filelock import FileLock

    folder = copy_of(trained, tmp_path)
    with FileLock(folder / "features.lock"), pytest.raises(ConfigError, match=r"\(pid .*\) is collecting"):
        collect(folder, CollectConfig(tokens=100))
