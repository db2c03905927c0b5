"""Every reader of files that others may have made, each with small files that it reads."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from sae.base.files import MANIFEST, publish_json, read_json, sha256_of
from sae.browser.opened import curves
from sae.config import TrainConfig, from_json
from sae.data.documents import open_documents
from sae.data.images.opening import open_images
from sae.data.tensors import open_tensors
from sae.evaluation.words import described
from sae.features.store.database import Blobs
from sae.harvest.language_model import locate_model, skeleton
from sae.harvest.shards import sealed
from sae.harvest.store_disk import DiskStore
from sae.interop import read
from sae.interop.files import shapes_in, tensors_in
from sae.interop.registry import entries
from sae.models.saved import load, read_report
from sae.runs.metrics import read_metrics
from sae.selftest import layouts
from sae.selftest.gguf_file import write_gguf
from sae.selftest.made import make_runs
from sae.selftest.mutations import ANYWHERE, in_json, in_npy
from sae.selftest.scenes import read_features
from sae.selftest.world import VOCABULARY, byte_tokenizer, corpus_texts, tiny_llama
from sae.training.checkpoint import load_newest

Files = dict[str, bytes]
BEYOND_MENDING = (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError)
Mend = Callable[[Path, Files, random.Random], None]


class Reader(NamedTuple):
    """One reader."""

    name: str
    weight: float
    """How often it is drawn, relative to the others."""
    folder: Path
    """Where its files lie."""
    files: Files
    """Paths in the folder of those that are changed -> content."""
    read: Callable[[Path], Any]
    """Reads the folder."""
    mend: Mend | None = None
    """Makes hashes agree again after a change, so that more than the hash is tested."""


def make_readers(folder: Path) -> list[Reader]:
    """All of them, with their files below `folder`."""
    world = make_runs(folder / "world", seed=0, exports=False)
    readers = [
        _reader("run", 2, world.folder / "run", ["config.json", "sae.safetensors"], _read_run, mend_run),
        _reader("metrics", 1, world.folder / "run", ["metrics.jsonl", "eval.json"], _read_metrics, mend_report),
        _reader("features", 1, world.folder / "run", ["features.sqlite"], read_features, mend_features),
        _reader("annotations", 1, world.folder / "run", ["annotations.sqlite"], read_features),
        _reader("checkpoint", 2, world.folder / "unfinished/checkpoints", None, load_newest, mend_manifest),
        _reader("store", 2, world.folder / "store", None, _read_store, mend_store),
    ]
    for format, (place, inside) in _foreign(folder / "foreign").items():
        readers.append(_reader(format, 1, place, None, lambda root, inside=inside: read(root / inside)))
    for name, (file, reader) in _single_files(folder / "files").items():
        readers.append(_reader(name, 1, file.parent, [file.name], lambda root, n=file.name, r=reader: r(root / n)))
    return readers


def _reader(
    name: str,
    weight: float,
    folder: Path,
    files: list[str] | None,
    reader: Callable[[Path], Any],
    mend: Mend | None = None,
) -> Reader:
    """A copy of the folder, so that readers do not share files."""
    own = folder.with_name(f"{folder.name}-{name}")
    shutil.copytree(folder, own)
    paths = [str(p.relative_to(own)) for p in sorted(own.rglob("*")) if p.is_file()] if files is None else files
    return Reader(name, weight, own, {path: (own / path).read_bytes() for path in paths}, reader, mend)


def _foreign(folder: Path) -> dict[str, tuple[Path, str]]:
    """Format -> the folder that stands for a repository, and where the autoencoder lies in it."""
    places: dict[str, tuple[Path, str]] = {}
    for entry in entries():
        if entry.of.format not in places and entry.of.format in layouts.WRITERS:
            root = folder / entry.of.format / "repository"
            layouts.write(entry, root)
            places[entry.of.format] = (root, entry.path)
    return places


def _single_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Name -> a file in a folder of its own, and what reads it."""
    files: dict[str, tuple[Path, Callable[[Path], Any]]] = {}

    def add(name: str, reader: Callable[[Path], Any], write: Callable[[Path], Any]) -> None:
        file = folder / name.replace(".", "-") / name
        file.parent.mkdir(parents=True)
        write(file)
        files[name] = (file, reader)

    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    add("rows.safetensors", _read_rows, lambda file: save_file({"rows": rows, "other": rows[0].clone()}, file))
    add("rows.npy", _read_rows, lambda file: np.save(file, rows.numpy()))
    add("rows.parquet", _read_rows, lambda file: _write_parquet(file, {"rows": rows.tolist()}))
    add("weights.npz", _read_tensors, lambda file: np.savez(file, W=rows.numpy(), b=rows[0].numpy()))
    add("weights.pt", _read_tensors, lambda file: torch.save({"W": rows, "k": torch.tensor(3), "n": {"b": rows}}, file))
    add("config.json", _read_config, lambda file: publish_json(file, _config()))
    texts = corpus_texts(30)
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
    chats = "".join(
        json.dumps({"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]}) + "\n"
        for t in texts
    ).encode()
    add("texts.jsonl", _read_texts, lambda file: file.write_bytes(lines))
    add("chats.jsonl", _read_texts, lambda file: file.write_bytes(chats))
    ids = "".join(json.dumps({"input_ids": list(range(9))}) + "\n" for _ in texts).encode()
    add("ids.jsonl", _read_texts, lambda file: file.write_bytes(ids))
    add("texts.jsonl.gz", _read_texts, lambda file: file.write_bytes(gzip.compress(lines)))
    add("list.json", _read_texts, lambda file: file.write_text(json.dumps([{"text": text} for text in texts])))
    add("texts.csv", _read_texts, lambda file: _write_table(file, texts, ","))
    add("texts.tsv", _read_texts, lambda file: _write_table(file, texts, "\t"))
    add("texts.txt", _read_texts, lambda file: file.write_text("\n\n".join(texts)))
    add("texts.parquet", _read_texts, lambda file: _write_parquet(file, {"text": texts}))
    add("picture.png", _read_pictures, _write_picture)
    add("picture.jpg", _read_pictures, _write_picture)
    add("model.gguf", _read_gguf, lambda file: write_gguf(tiny_llama(), byte_tokenizer(VOCABULARY), file))
    return files


def _config() -> dict[str, Any]:
    return {
        "harvest": {"model": "m", "dataset": "d", "layer": 3},
        "sae": {"variant": "topk", "k": 8, "width": 64},
        "optim": {"lr": 1e-3},
        "out": "runs/x",
        "tokens": 1000,
    }


def _write_table(path: Path, texts: list[str], delimiter: str) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["text", "id"])
        writer.writerows([text, number] for number, text in enumerate(texts))


def _write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=10)


def _write_picture(path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _read_run(folder: Path) -> Any:
    model = load(folder)
    record = read_json(folder / "config.json")
    config = from_json(TrainConfig, record.get("train"), f"{folder / 'config.json'}: train")
    return [model.width, config]


def _read_metrics(folder: Path) -> Any:
    return [
        read_metrics(folder),
        curves(folder),
        described(read_report(folder, "eval.json"), "language"),
    ]


def _read_store(folder: Path) -> Any:
    store = DiskStore(folder)
    return store.read(range(min(store.rows, 64)), list(store.identity["sites"]))


def _read_rows(path: Path) -> Any:
    part = open_tensors(path).part("train", heldout=0.1, seed=0)
    return part.read(range(min(part.rows, 8)))


def _read_tensors(path: Path) -> Any:
    return [shapes_in(path), tensors_in(path)]


def _read_config(path: Path) -> Any:
    return from_json(TrainConfig, read_json(path), str(path))


def _read_texts(path: Path) -> Any:
    return [len(document.text) for document in open_documents(path, split="all")]


def _read_pictures(path: Path) -> Any:
    images = open_images(f"folder:{path.parent}", split="all")
    return images.render(torch.arange(images.count))


def _read_gguf(path: Path) -> Any:
    return len(list(skeleton(locate_model(str(path), trust_remote_code=False)).parameters()))


def mend_run(folder: Path, files: Files, draw: random.Random) -> None:
    """config.json has the hash of the weights and of itself."""
    with contextlib.suppress(*BEYOND_MENDING):
        record = json.loads((folder / "config.json").read_bytes())
        record["autoencoder"]["sha256"] = sha256_of(folder / "sae.safetensors")
        _put_json(folder / "config.json", record)


def mend_report(folder: Path, files: Files, draw: random.Random) -> None:
    """eval.json has the hash of itself."""
    with contextlib.suppress(*BEYOND_MENDING):
        _put_json(folder / "eval.json", json.loads((folder / "eval.json").read_bytes()))


def mend_manifest(folder: Path, files: Files, draw: random.Random) -> None:
    """Every manifest has the hashes of the files beside it, and every record that of itself."""
    for path in folder.rglob("*.json"):
        with contextlib.suppress(*BEYOND_MENDING):
            _put_json(path, json.loads(path.read_bytes()))
    for manifest in folder.rglob(MANIFEST):
        inside = [p for p in sorted(manifest.parent.rglob("*")) if p.is_file() and p != manifest]
        entries_of = {str(p.relative_to(manifest.parent)): p for p in inside}
        digests = {name: {"sha256": sha256_of(p), "bytes": p.stat().st_size} for name, p in entries_of.items()}
        _put_json(manifest, {"files": digests})


def mend_store(folder: Path, files: Files, draw: random.Random) -> None:
    """The manifests have the sizes and hashes of the shards, and every record its seal."""
    for path in folder.rglob("*.json"):
        with contextlib.suppress(*BEYOND_MENDING):
            record = json.loads(path.read_bytes())
            for shard in record.get("shards", ()):
                file = path.parent / shard["name"]
                shard |= {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            path.write_bytes(sealed(record))


def _put_json(path: Path, value: Any) -> None:
    for name in [name for name in value if name.startswith("sparsight_")] if isinstance(value, dict) else []:
        del value[name]
    publish_json(path, value)


def mend_features(folder: Path, files: Files, draw: random.Random) -> None:
    """In place of what was changed, one blob of the whole database is changed, and has its hash."""
    path = folder / "features.sqlite"
    path.write_bytes(files[path.name])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        blobs = Blobs(connection, path)
        table = draw.choice(("parts", "parts", "records", "documents", "events"))
        index, data = draw.choice(list(blobs.all(table)))
        connection.execute("PRAGMA journal_mode = OFF")
        blobs.put(table, [(index, _changed_blob(data, draw))])


def _changed_blob(data: bytes, draw: random.Random) -> bytes:
    aware = in_npy if data.startswith(b"\x93NUMPY") else in_json if data.startswith(b"{") else draw.choice(ANYWHERE)
    return (aware if draw.random() < 0.7 else draw.choice(ANYWHERE))(data, draw)
