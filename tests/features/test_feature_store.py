"""The store: what is written is what is read, hostile text included; damage is noticed; searches find."""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from brute import assert_same, make_corpus, rectangular
from synthetic_store import synthetic_collection, synthetic_store

from finished_runs import finished_run
from sae.base.files import CorruptError
from sae.config import CollectConfig
from sae.features.collect.collect import collect
from sae.features.store import records, writer
from sae.features.store.annotations import Annotations
from sae.features.store.collection import Collection
from sae.features.store.database import has_fts5
from sae.features.store.documents import Tokens
from sae.features.store.keys import FeatureError
from sae.features.store.related import coactive
from sae.features.store.restore import restore
from sae.features.store.search import search
from sae.features.store.store import FeatureStore
from sae.features.store.text import Vocabulary
from sae.features.store.writer import SCALARS, STORE, write_store
from sae.selftest.world import byte_tokenizer
from sae_kernels import SparseCodes

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\x00b\x07\x1b[31m\r\n\t", "‮gnirts desrever‬ العربية",
    "naïve 你好 🎉👩‍👩‍👧 e\u0301", "'; DROP TABLE records; --", "\ufeff\u200b\u2028 ", "x" * 5000,
    '"*" AND NEAR(', "%_\\",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up store of 300 latents."""
    folder = tmp_path_factory.mktemp("store")
    synthetic_store(folder, 300, tokens=6000).close()
    return folder


@pytest.fixture(scope="module")
def collected(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with features."""
    folder = tmp_path_factory.mktemp("collected") / "run"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder, ignore=shutil.ignore_patterns("features*"))
    collect(folder, CollectConfig(tokens=3000))
    return folder


def hostile_store(folder: Path) -> tuple[FeatureStore, list[list[int]]]:
    """A store whose documents are the hostile texts, byte by byte where a tokenizer would do so."""
    tokenizer = byte_tokenizer(300)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in HOSTILE]
    collection = Collection(2, 0)
    for document, tokens in enumerate(ids):
        position = torch.arange(len(tokens))
        values = torch.rand(len(tokens), 2, generator=torch.Generator().manual_seed(document)) + 0.1
        collection.add(
            SparseCodes(values, torch.arange(2).expand(len(tokens), 2), 2),
            Tokens(torch.tensor(tokens), torch.full((len(tokens),), document), position, torch.zeros_like(position)),
        )
    collection.finish()
    info = {
        "format": 1, "width": 2, "tokens": collection.tokens, "documents": len(HOSTILE), "seed": 0, "weights": "none",
        "revision": 1, "left_out": collection.left_out,
    }  # fmt: skip
    write_store(folder, collection, Vocabulary.of(tokenizer), info, np.ones(2, np.float32))
    return FeatureStore(folder), ids


def test_a_record_has_what_the_page_needs(collected: Path) -> None:
    store = FeatureStore(collected)
    info = {"kind": "language", "width": 128, "finished": True, "progress": 1.0, "seed": 0, "window": [24, 8]}
    assert info.items() <= store.info.items()
    for latent in store.scalars["count"].argsort()[-20:].tolist():
        record = json.loads(json.dumps(store.record(latent), allow_nan=False))
        row = store.scalars[latent]
        assert record["latent"] == latent
        assert (record["count"], record["density"]) == (row["count"], row["density"])
        assert record["max"] == pytest.approx(row["max"])
        assert record["mean"] == pytest.approx(row["mean"])
        examples = record["examples"]
        assert [e["value"] for e in examples if e["band"] == "top"] == sorted(
            (e["value"] for e in examples if e["band"] == "top"), reverse=True
        )
        assert record["max"] == examples[0]["value"]
        for example in examples:
            assert len(example["tokens"]) == len(example["token_ids"]) == len(example["values"]) <= 33
            assert example["values"][example["peak"]] == example["value"] > 0
        assert len(record["histogram"]["counts"]) == len(record["histogram"]["low_exponents"])


def test_scalars_are_mapped_and_agree_with_the_records(collected: Path) -> None:
    store = FeatureStore(collected)
    assert isinstance(store.scalars, np.memmap)
    vocabulary = store.vocabulary
    for latent in (0, 40, 127):
        record = store.record(latent)
        uniform = [e["token_ids"][e["peak"]] for e in record["examples"] if e["band"] == "uniform"]
        share = np.unique(uniform, return_counts=True)[1] / max(len(uniform), 1)
        assert store.scalars["entropy"][latent] == pytest.approx(float(-(share * np.log2(share)).sum()), abs=1e-5)
        top = [vocabulary.name(e["token_ids"][e["peak"]]) for e in record["examples"] if e["band"] == "top"]
        if top:
            assert top.count(store.scalars["top_token"][latent]) == max(map(top.count, top))
    atoms = finished_atoms(collected)
    np.testing.assert_allclose(store.scalars["atom_norm"], np.linalg.norm(atoms, axis=1), rtol=1e-5)
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(unit))
    np.testing.assert_allclose(store.scalars["nearest_cos"], cosines.max(1), atol=1e-5)
    assert np.isnan(store.scalars["score"]).all()


def finished_atoms(folder: Path) -> np.ndarray:
    import sae

    return sae.load(folder).dictionary.W.detach().numpy()


def test_bands_split_the_firings_by_their_quantiles_and_hold_no_zeros() -> None:
    corpus = make_corpus(5, documents=200, width=3, levels=400)
    collection = Collection(3, 0)
    collection.add(rectangular(corpus.codes), corpus.tokens(np.arange(len(corpus.codes))))
    collection.finish()
    events = {name: b.events() for name, b in collection.buffers.items()}
    for latent, packed in records.pack(collection.statistics, events, 0, 3):
        record = records.unpack(packed)
        found = records.examples(record, 0)
        bands = records.bands(record, found)
        values = np.sort(corpus.codes[:, latent][corpus.codes[:, latent] > 0])
        assert sum(band["share"] for band in bands) == pytest.approx(1)
        assert bands[0]["high"] == values[-1]
        assert bands[-1]["low"] == 0
        below = 0.0
        for band in reversed(bands):
            below += band["share"]
            # a quantile of a sample of n lies at the level +- sqrt(p (1 - p) / n): 32 and 63 are sampled here
            true = (values <= band["high"]).mean()
            assert true == pytest.approx(below, abs=0.25 if below < 0.9 else 0.1)
            assert all(band["low"] < found[i].value <= band["high"] for i in band["examples"])
        listed = [i for band in bands for i in band["examples"]]
        assert len(listed) == len({(found[i].document, found[i].position) for i in range(len(found))})


def test_bands_of_a_rare_latent_are_its_own_quantiles() -> None:
    position = torch.arange(20)
    tokens = Tokens(position, torch.zeros_like(position), position, torch.zeros_like(position))
    collection = Collection(2, 0)
    collection.add(SparseCodes((position + 1.0)[:, None], torch.zeros(20, 1, dtype=torch.int64), 2), tokens)
    collection.finish()
    events = {name: b.events() for name, b in collection.buffers.items()}
    record, silent = (records.unpack(packed) for _, packed in records.pack(collection.statistics, events, 0, 2))
    bands = records.bands(record, records.examples(record, 0))
    assert [band["high"] for band in bands] == [20, 18, 15, 10, 5]
    assert records.bands(silent, records.examples(silent, 0)) == []
    assert records.statistics_of(silent, 20)["histogram"]["zeros"] == 20


def test_hostile_text_comes_back_as_it_was(tmp_path: Path) -> None:
    store, ids = hostile_store(tmp_path)
    for document, text in enumerate(HOSTILE):
        shown = store.document(document)
        assert "".join(shown["tokens"]) == text
        assert shown["token_ids"] == ids[document]
    json.loads(json.dumps(store.record(0)))
    # a split character is whole at its first token, and nothing at the rest
    tokens = store.document(4)["tokens"]
    assert "🎉" in tokens
    assert tokens[tokens.index("🎉") + 1] == ""
    for text in (
        "<script>",
        "drop table",
        '"*" AND NEAR(',
        "%_\\",
        "你好",
        "العربية",
        "x" * 300,
        '"',
        "*",
        "\\",
        "((",
        "-",
    ):
        assert isinstance(search(store, text), list)
    for text, document in (("<script>alert", 0), ("drop table", 5), ("你好", 4), ("%_\\", 9)):
        hits = search(store, text)
        assert {hit.latent for hit in hits} == {0, 1}
        assert all(hit.where == "example" for hit in hits)
        assert all(text in hit.snippet.lower() for hit in hits), document
    assert search(store, "not to be found") == search(store, "   ") == []


def test_a_collection_comes_back_from_its_store(tmp_path: Path) -> None:
    collection = synthetic_collection(200, seed=4, tokens=5000)
    synthetic_store(tmp_path, 200, 4, tokens=5000).close()
    again = restore(tmp_path)
    again.finish()
    assert_same(collection, again)


def everything(folder: Path) -> str:
    """All that a reader can get out of a store, as text."""
    store = FeatureStore(folder)
    documents = [row[0] for row in store.query("SELECT id FROM documents ORDER BY id")]
    read = [store.record(i) for i in range(store.width)], [store.document(d) for d in documents]
    events = [[a.tolist() for a in store.events_in(d)] for d in documents]
    search(store, "river")
    store.close()
    return repr((store.info, read, events, store.scalars.tolist()))


def test_changed_bytes_are_noticed_and_never_served(tmp_path: Path) -> None:
    synthetic_store(tmp_path / "whole", 24, tokens=400).close()
    wanted = everything(tmp_path / "whole")
    data = (tmp_path / "whole" / STORE).read_bytes()
    draw = random.Random(0)
    noticed = []
    for _ in range(30):
        place = draw.randrange(len(data))
        changed = bytes([data[place] ^ (1 << draw.randrange(8))])
        (tmp_path / STORE).write_bytes(data[:place] + changed + data[place + 1 :])
        try:
            read = everything(tmp_path)
        except (CorruptError, FeatureError) as error:
            noticed.append(str(error))
        else:
            assert read == wanted
    assert len(noticed) > 8
    assert all(STORE in message for message in noticed)
    for size in (0, 100, len(data) // 2):
        (tmp_path / STORE).write_bytes(data[:size])
        with pytest.raises((CorruptError, FeatureError), match=re.escape(str(tmp_path))):
            everything(tmp_path)


def test_scalars_of_another_writing_are_not_believed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    wanted = FeatureStore(folder).scalars.tolist()
    path = tmp_path / "copy" / SCALARS
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    assert repr(FeatureStore(tmp_path / "copy").scalars.tolist()) == repr(wanted)
    path.unlink()
    assert repr(FeatureStore(tmp_path / "copy").scalars.tolist()) == repr(wanted)


def test_a_reader_keeps_its_store_while_another_takes_its_place(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, 50, seed=1, tokens=2000)
    before = store.record(7)
    collection = synthetic_collection(50, seed=2, tokens=2000, active=50)
    write_store(tmp_path, collection, store.vocabulary, {**store.info, "revision": 2, "seed": 2}, np.ones(50))
    store.raw.cache_clear()
    assert store.record(7) == before
    assert FeatureStore(tmp_path).record(7) != before


def test_a_folder_without_features_says_how_to_get_some(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FeatureError, match="collect them first: sae features"):
        FeatureStore(tmp_path)
    store = FeatureStore(folder)
    for latent in (-1, 300):
        with pytest.raises(FeatureError, match="latents 0 to 299"):
            store.record(latent)
    with pytest.raises(FeatureError, match="document 99999"):
        store.document(99999)
    store.close()


def test_threads_may_share_a_store(folder: Path) -> None:
    store = FeatureStore(folder)
    wanted = [store.record(i)["count"] for i in range(100)]
    store.raw.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: store.record(i)["count"], range(100))) == wanted
        assert len(set(pool.map(lambda _: len(search(store, "river", 20)), range(16)))) == 1


def test_the_store_cannot_be_written_through_a_reader(folder: Path) -> None:
    store = FeatureStore(folder)
    with pytest.raises(CorruptError, match="readonly"):
        store.query("DELETE FROM records")


def test_search_without_the_index_of_words_finds_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = FeatureStore(folder)
    with_index = search(store, "river3", 1000)
    assert with_index
    monkeypatch.setattr(writer, "has_fts5", lambda connection: False)
    plain = synthetic_store(tmp_path, 300, tokens=6000)
    assert not plain.query("SELECT 1 FROM sqlite_schema WHERE name = 'words'")
    assert {hit.latent for hit in search(plain, "river3", 1000)} == {hit.latent for hit in with_index}
    assert has_fts5(sqlite3.connect(":memory:"))


def test_search_finds_names_labels_and_tokens_first(collected: Path) -> None:
    annotations = Annotations(collected)
    annotations.set(5, label="Stone things", note="seen often")
    annotations.set_names({9: {"name": "old STONE houses", "score": 0.75}})
    store = FeatureStore(collected)
    hits = search(store, "stone")
    assert [(hit.latent, hit.where) for hit in hits[:2]] == [(9, "name"), (5, "label")]
    assert store.scalars["score"][9] == np.float32(0.75)
    token = store.logits(11)["top"][0]["token"]
    assert any(hit.where == "logits" for hit in search(store, token))
    assert len({hit.latent for hit in hits}) == len(hits)


def test_an_example_that_peaks_in_the_text_found_comes_before_its_neighbours(collected: Path) -> None:
    store = FeatureStore(collected)
    latent = int(store.scalars["count"].argmax())
    example = store.record(latent)["examples"][0]
    text = "".join(example["tokens"][max(0, example["peak"] - 6) : example["peak"] + 1]).strip()
    hits = [hit.latent for hit in search(store, text, 128)]
    inside = {
        other
        for other in range(128)
        for e in store.record(other)["examples"]
        if e["band"] != "weighted" and (e["document"], e["position"]) == (example["document"], example["position"])
    }
    assert latent in inside
    assert inside <= set(hits)


def test_co_active_latents_are_those_that_fire_together(tmp_path: Path) -> None:
    n = 4000
    draw = torch.Generator().manual_seed(0)
    fires = torch.zeros(n, 6)
    base = torch.rand(n, generator=draw) < 0.2
    fires[:, 0] = base.float()
    fires[:, 1] = (base & (torch.rand(n, generator=draw) < 0.8)).float()  # resemblance 0.8
    fires[:, 2] = (base & (torch.rand(n, generator=draw) < 0.4)).float()  # 0.4
    fires[:, 3:] = (torch.rand(n, 3, generator=draw) < 0.05).float()
    position = torch.arange(n)
    tokens = Tokens(position % 200, position // 100, position % 100, torch.zeros_like(position))
    collection = Collection(6, 0)
    collection.add(rectangular((fires * (1 + torch.rand(n, 6, generator=draw))).numpy()), tokens)
    collection.finish()
    info = {"format": 1, "width": 6, "tokens": n, "seed": 0, "weights": "none", "revision": 1}
    write_store(tmp_path, collection, Vocabulary.of_bytes([b"a"] * 200), info, np.ones(6, np.float32))
    found = {row["latent"]: row["jaccard"] for row in coactive(FeatureStore(tmp_path), 0)}
    assert list(found)[:2] == [1, 2]
    # 32 hashes: the standard error is below 0.09
    assert found[1] == pytest.approx(0.8, abs=0.25)
    assert found[2] == pytest.approx(0.4, abs=0.25)
    assert all(found.get(i, 0) < 0.2 for i in (3, 4, 5))
