"""Harvested rows kept for several epochs, in memory or in a store of immutable, hashed shards, and how they are filled.

    store = fill_store(MemoryStore(identity, 400_000), harvest, tokens=400_000, progress=print)
    store.read(range(2048), ["resid_post.9"]).activations["resid_post.9"]     # [2048, d]

A killed harvest into a `DiskStore` resumes after its last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sae.config import ConfigError
from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Cursor
from sae.data.side_stream import prefetch_beside
from sae.harvest.rows import Rows
from sae.harvest.shards import Worker
from sae.harvest.store_disk import DiskStore, check_store, stored_contexts, stored_precision
from sae.harvest.store_memory import MemoryStore, Store
from sae.harvest.stream import Harvest, Harvested

__all__ = [
    "DiskStore",
    "MemoryStore",
    "Store",
    "Worker",
    "check_store",
    "fill_store",
    "stored_contexts",
    "stored_precision",
]

SHARD_ROWS = 65_536
"""Rows of a shard: a multiple of the pages that batches are dealt from."""


def passes_to_store(harvest: Harvest, dtype: torch.dtype, begin: Cursor, missing: int) -> Iterator[Harvested]:
    """Forward passes from `begin` on with the rows that a store lacks, `missing` in all, on the CPU.

    A GPU goes on with the next pass while the caller writes the rows of one.
    """

    def passes() -> Iterator[Harvested]:
        skip, lacking = begin.taken, missing
        for harvested in harvest.batches(begin) if lacking > 0 else ():
            rows = harvest.trained_on(harvested.rows).between(skip, skip + lacking)
            rows = rows.stored(dtype, rows.activations, harvest.name_of).cpu()
            skip, lacking = 0, lacking - rows.size
            yield harvested._replace(rows=rows)
            if lacking == 0:
                return

    device = harvest.lm.device
    return prefetch_beside(device, passes(), 1) if device.type == "cuda" else passes()


def fill_store(store: Store, harvest: Harvest, *, tokens: int, progress: Callable[[int], None]) -> Store:
    """Harvest until the store serves `tokens` rows or the data ends; `progress` gets the rows added, a call a pass.

    A disk store that holds some rows is continued after its last shard; one that holds more serves its first `tokens`.

    Raises:
        ConfigError: rows are missing, and the store holds sites that this harvest does not.
        DataError: the data set gave no token to train on.
    """
    store.limit = tokens
    rows_stored = store.rows
    progress(rows_stored)
    lacking = store.identity["sites"].keys() - {site.name for site in harvest.sites}
    if rows_stored < tokens and lacking and not store.ended:
        raise ConfigError(
            f"--store: it holds {rows_stored} tokens of more sites ({', '.join(sorted(lacking))}), this run wants "
            f"{tokens} and harvests only its own sites; expected fewer --tokens or another --store"
        )
    waiting: list[Rows] = []
    begin = store.end() or BEGINNING
    skip, end = begin.taken, begin
    missing = 0 if store.ended else tokens - rows_stored
    for harvested in passes_to_store(harvest, store.dtype, begin, missing):
        rows = harvested.rows
        rows_stored += rows.size
        full = rows_stored == tokens
        done = 0
        while not store.in_memory and (room := SHARD_ROWS - sum(part.size for part in waiting)) <= rows.size - done:
            # a shard is full in the middle of a pass, which a resumed harvest runs again
            waiting.append(rows.between(done, done + room))
            done += room
            store.append(Rows.join(waiting), harvested.begin._replace(taken=skip + done))
            waiting = []
        end = harvested.begin._replace(taken=skip + rows.size) if full else harvested.contexts.next
        if done < rows.size:
            waiting.append(rows.between(done, rows.size))
        skip = 0
        progress(rows.size)
        if waiting and (full or store.in_memory):
            store.append(Rows.join(waiting), end)
            waiting = []
        if full:
            break
    else:
        if waiting:
            store.append(Rows.join(waiting), end)
        if rows_stored < tokens and not store.ended:
            store.finish()
    if store.rows == 0:
        raise DataError("the data set gave no token to train on")
    return store
