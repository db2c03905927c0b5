"""Writes what a collection holds as a store: `features.sqlite` and `features.scalars.npy`.

`features.sqlite` holds everything, so that a reader needs nothing else and a collection can go on from it; the scalars
lie beside it once more, as an array to be mapped into memory.

    write_store(folder, collection, vocabulary, info, atom_norms)
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.features import keys
from sae.features.buffers import NAMES, Events
from sae.features.collection import Collection
from sae.features.database import Blobs, build_database, has_fts5
from sae.features.documents import UNKNOWN, DocumentTokens
from sae.features.records import Packer
from sae.features.text import Vocabulary
from sae.files import publish_file

STORE, SCALARS = "features.sqlite", "features.scalars.npy"
FORMAT = 1
PARTS = {"info": 0, "scalars": 1, "vocabulary": 2}
"""Single blobs, by their id in the table `parts`."""
INDEXED = ("top", "uniform")
"""Buffers whose events can be found by document."""
FIELDS = np.dtype(
    [
        ("count", "<i8"),
        ("density", "<f8"),
        ("max", "<f4"),
        ("mean", "<f4"),
        ("entropy", "<f4"),
        ("atom_norm", "<f4"),
        ("top_token", "<U24"),
        ("nearest_cos", "<f4"),
        ("score", "<f4"),
    ]
)


def write_store(
    folder: Path,
    collection: Collection,
    vocabulary: Vocabulary,
    info: dict[str, Any],
    atom_norms: np.ndarray,
    nearest: np.ndarray | None = None,
) -> np.ndarray:
    """Publish a finished collection in `folder`, in place of the store that is there; returns the scalars.

    Args:
        collection: after `finish`.
        vocabulary: of the model's tokenizer.
        info: JSON values, see `FeatureStore.info`; "revision" must differ from that of the store that is replaced.
        atom_norms: float32 [F].
        nearest: cosine to the nearest other atom, float32 [F], where it is known.
    """
    events = {name: buffer.events() for name, buffer in collection.buffers.items()}
    scalars = _scalars(collection, events, vocabulary)
    scalars["atom_norm"] = atom_norms
    scalars["nearest_cos"] = np.nan if nearest is None else nearest
    packed = io.BytesIO()
    np.save(packed, scalars)
    packer = Packer(collection.statistics, events)

    def fill(connection: sqlite3.Connection) -> None:
        blobs = Blobs(connection, folder / STORE)
        for table in ("parts", "records", "documents", "events"):
            blobs.create(table)
        parts = {"info": json.dumps(info, allow_nan=False).encode(), "scalars": packed.getvalue()}
        parts["vocabulary"] = vocabulary.pack()
        blobs.put("parts", ((PARTS[name], data) for name, data in parts.items()))
        blobs.put("records", ((latent, packer.pack(latent)) for latent in range(collection.width)))
        documents = collection.documents
        blobs.put("documents", ((d, documents.tokens(d).astype("<i4").tobytes()) for d in documents.numbers()))
        blobs.put("events", _events_by_document(events))
        _write_texts(connection, documents, vocabulary)

    # the scalars go first: a reader that finds them newer than the database takes the copy inside it
    publish_file(folder / SCALARS, packed.getvalue())
    build_database(folder / STORE, fill)
    return scalars


def _write_texts(connection: sqlite3.Connection, documents: DocumentTokens, vocabulary: Vocabulary) -> None:
    """The documents' texts, to be searched: with an index of words where this SQLite can make one."""
    connection.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT)")
    texts = ((d, "".join(vocabulary.display(documents.tokens(d))).replace("\0", " ")) for d in documents.numbers())
    connection.executemany("INSERT INTO texts VALUES (?, ?)", texts)
    if has_fts5(connection):
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(text, content='texts', content_rowid='id')")
        connection.execute("INSERT INTO words(words) VALUES ('rebuild')")


def _events_by_document(events: dict[str, Events]) -> Iterator[tuple[int, bytes]]:
    """For every document what `PlacedEvents` unpacks: its events, sorted by position, then latent."""
    place, latent, kind = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    events[name].place.cpu().numpy(),
                    events[name].latent.cpu().numpy().astype("<i4"),
                    np.full(len(events[name].place), NAMES.index(name), np.uint8),
                )
                for name in INDEXED
            ),
            strict=True,
        )
    )
    by = np.lexsort((kind, latent, place))
    place, latent, kind = place[by], latent[by], kind[by]
    document = place >> keys.POSITION_BITS
    position = (place & ((1 << keys.POSITION_BITS) - 1)).astype("<i4")
    numbers, begins = np.unique(document, return_index=True)
    for number, begin, end in zip(numbers.tolist(), begins.tolist(), [*begins[1:].tolist(), len(by)], strict=True):
        part = slice(begin, end)
        yield number, position[part].tobytes() + latent[part].tobytes() + kind[part].tobytes()


class PlacedEvents(NamedTuple):
    """The events of one document, sorted by position, then latent."""

    position: np.ndarray
    """int32 [E]"""
    latent: np.ndarray
    """int32 [E]"""
    buffer: np.ndarray
    """uint8 [E], index into `buffers.NAMES`"""

    @classmethod
    def unpack(cls, data: bytes) -> PlacedEvents:
        """What the table `events` holds."""
        count = len(data) // 9
        return cls(
            np.frombuffer(data, "<i4", count),
            np.frombuffer(data, "<i4", count, 4 * count),
            np.frombuffer(data, np.uint8, count, 8 * count),
        )


def _scalars(collection: Collection, events: dict[str, Events], vocabulary: Vocabulary) -> np.ndarray:
    """The columns that a table of all latents sorts and filters by; atoms' columns are left to the caller."""
    width, statistics = collection.width, collection.statistics
    scalars = np.zeros(width, FIELDS)
    count = statistics.count.cpu().numpy()
    scalars["count"] = count
    scalars["density"] = count / max(collection.tokens, 1)
    scalars["mean"] = statistics.sum() / np.maximum(count, 1)
    scalars["score"] = np.nan
    top = events["top"]
    latent = top.latent.cpu().numpy()
    first, begins = np.unique(latent, return_index=True)
    scalars["max"][first] = top.value.cpu().numpy()[begins]
    tokens_at = _token_lookup(collection.documents)
    scalars["entropy"] = _entropies(events["uniform"], tokens_at(events["uniform"]), width)
    # the token most frequent among the strongest examples, of equal ones the stronger
    token = tokens_at(top)
    rank = np.arange(len(latent)) - begins.repeat(np.diff([*begins, len(latent)]))
    pair, where, times = np.unique(latent * (1 << 32) + token, return_index=True, return_counts=True)
    by = np.lexsort((rank[where], -times, pair >> 32))
    leaders = by[np.unique(pair[by] >> 32, return_index=True)[1]]
    names = {t: vocabulary.name(t) for t in np.unique(token[where[leaders]]).tolist()}
    scalars["top_token"][pair[leaders] >> 32] = [names[t] for t in token[where[leaders]].tolist()]
    return scalars


def _token_lookup(documents: DocumentTokens) -> Any:
    """A function of events that gives their token ids, int64 [E]."""
    numbers = np.array(documents.numbers(), np.int64)
    parts = [documents.tokens(d) for d in numbers.tolist()]
    begins = np.cumsum([0, *map(len, parts)])
    joined = np.concatenate([*parts, np.array([UNKNOWN], np.int32)])

    def tokens_at(events: Events) -> np.ndarray:
        document = keys.document_of(events.place).cpu().numpy()
        position = keys.position_of(events.place).cpu().numpy()
        return joined[begins[np.searchsorted(numbers, document)] + position].astype(np.int64)

    return tokens_at


def _entropies(events: Events, token: np.ndarray, width: int) -> np.ndarray:
    """Entropy in bits of the token ids of each latent's events, float64 [F]."""
    latent = events.latent.cpu().numpy()
    pair, times = np.unique(latent * (1 << 32) + token, return_counts=True)
    of = pair >> 32
    total = np.bincount(of, times, width)
    share = times / np.maximum(total[of], 1)
    return np.maximum(0, np.bincount(of, -share * np.log2(share), width))
