"""A collection as it was when its store was written, so that a pass can resume."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from sae.base.files import CorruptError
from sae.base.reading import reading
from sae.features.store import records
from sae.features.store.buffers import Events
from sae.features.store.collection import Collection
from sae.features.store.database import COLLECT_AGAIN, Blobs, open_read_only
from sae.features.store.store import read_info
from sae.features.store.writer import STORE, TABLES

_AT_ONCE = 4096


def restore(folder: Path, device: torch.device | str = "cpu") -> Collection:
    """The collection that `write_store` wrote into `folder`.

    Raises:
        CorruptError: the store is damaged.
    """
    path = folder / STORE
    info = read_info(path)
    with reading(path), contextlib.closing(open_read_only(path, TABLES)) as connection:
        blobs = Blobs(connection, path)
        collection = Collection(info["width"], info["seed"], device)
        collection.tokens, collection.left_out = info["tokens"], dict(info["left_out"])
        batch: list[tuple[int, records.Record]] = []
        for latent, packed in blobs.all("records"):
            batch.append((latent, records.unpack(packed)))
            if len(batch) == _AT_ONCE:
                _put(collection, batch)
                batch = []
        if batch:
            _put(collection, batch)
        for document, packed in blobs.all("documents"):
            collection.documents.put(document, np.frombuffer(packed, "<i4"))
        for table, expected in (("records", info["width"]), ("documents", info["documents"])):
            ((rows,),) = blobs.query(f"SELECT count(*) FROM {table}")
            if rows != expected:
                raise CorruptError(f"{path}: {rows} {table}, {expected} were written; {COLLECT_AGAIN}")
    return collection


def _put(collection: Collection, batch: list[tuple[int, records.Record]]) -> None:
    """Fill the rows of these latents."""
    device, statistics = collection.device, collection.statistics
    latents = torch.tensor([latent for latent, _ in batch], device=device)
    columns = {
        "count": [record.count for _, record in batch],
        "sums": np.stack([record.sums for _, record in batch]),
        "squares": np.stack([record.squares for _, record in batch]),
        "histogram": np.stack([record.histogram for _, record in batch]),
    }
    for name, values in columns.items():
        getattr(statistics, name)[latents] = torch.as_tensor(np.asarray(values), device=device)
    for name, buffer in collection.buffers.items():
        parts = [record.events[name] for _, record in batch]
        counts = torch.tensor([len(place) for place, _, _ in parts], device=device)
        place, value, window = (torch.from_numpy(np.concatenate(columns)) for columns in zip(*parts, strict=True))
        buffer.absorb(Events(latents.repeat_interleave(counts), place.to(device), value.to(device), window.to(device)))
