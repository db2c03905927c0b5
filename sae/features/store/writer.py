"""Writes a collection as a store: `features.sqlite`, and `features.scalars.npy` for sorting and filtering tables.

`features.sqlite` contains everything that a reader or a resumed pass needs; the scalars lie beside it a second time, as
an array to be mapped into memory.

    write_store(folder, collection, vocabulary, info, atom_norms)
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.base.files import publish_file
from sae.features.store import keys
from sae.features.store.buffers import EMPTY, NAMES, Events
from sae.features.store.collection import Collection
from sae.features.store.database import WORDS, Blobs, build_database, has_fts5
from sae.features.store.documents import UNKNOWN, DocumentTokens
from sae.features.store.records import pack
from sae.features.store.statistics import SUM_DIGITS, read_sum
from sae.features.store.text import Vocabulary

STORE, SCALARS = "features.sqlite", "features.scalars.npy"
FORMAT, READABLE = 2, (1, 2)
"""Since 2 every document has its events, if none, and what searches read has a hash."""
PARTS = {"info": 0, "scalars": 1, "vocabulary": 2, "search": 3}
"""Ids of the blobs in the table `parts`; "search" is `search_digest`."""
TABLES = frozenset({"parts", "records", "documents", "events", "texts", "words"}) | {
    f"words_{part}" for part in ("data", "idx", "docsize", "config")
}
INDEXED = ("top", "uniform")
"""Buffers whose events can be found by document."""
_LATENTS_AT_ONCE = 4096
_EVENTS_AT_ONCE = 1 << 19
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
"""One row a latent. Shares of tokens (density), bits (entropy, of the token ids of the uniform examples), means over
firings; "top_token" is the most frequent token among the strongest examples. Not from a collection: "atom_norm",
"nearest_cos" (cosine to the nearest other atom) and "score" (of the name), NaN where unknown."""


def write_store(
    folder: Path,
    collection: Collection,
    vocabulary: Vocabulary,
    info: dict[str, Any],
    atom_norms: np.ndarray,
    nearest: np.ndarray | None = None,
) -> np.ndarray:
    """Publish a finished collection in `folder`, replacing the store there; returns the scalars.

    Args:
        collection: after `finish`.
        vocabulary: of the model's tokenizer.
        info: JSON values, see `FeatureStore.info`; "revision" must differ from that of the store that is replaced.
        atom_norms: float32 [F].
        nearest: cosine to the nearest other atom, float32 [F], where it is known.
    """
    scalars = np.zeros(collection.width, FIELDS)

    def fill(connection: sqlite3.Connection) -> None:
        blobs = Blobs(connection, folder / STORE)
        for table in ("parts", "records", "documents", "events"):
            blobs.create(table)
        tokens_at = token_lookup(collection.documents)
        for begin in range(0, collection.width, _LATENTS_AT_ONCE):
            end = min(begin + _LATENTS_AT_ONCE, collection.width)
            events = {name: buffer.events(begin, end) for name, buffer in collection.buffers.items()}
            scalars[begin:end] = scalar_columns(collection, events, tokens_at, vocabulary, begin, end)
            blobs.put("records", pack(collection.statistics, events, begin, end))
        scalars["atom_norm"] = atom_norms
        scalars["nearest_cos"] = np.nan if nearest is None else nearest
        file = io.BytesIO()
        np.save(file, scalars)
        parts = {"info": json.dumps(info, allow_nan=False).encode(), "scalars": file.getvalue()}
        parts["vocabulary"] = vocabulary.pack()
        documents = collection.documents
        blobs.put("documents", ((d, documents.tokens(d).astype("<i4").tobytes()) for d in documents.numbers()))
        blobs.put("events", _events_by_document(collection))
        _write_texts(connection, documents, vocabulary)
        # fts5 keeps a part of its index in memory until a commit
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        parts["search"] = search_digest(blobs)
        blobs.put("parts", ((PARTS[name], data) for name, data in parts.items()))
        # published before the database: a reader that finds other scalars than in the database uses those in it
        publish_file(folder / SCALARS, file.getvalue())

    build_database(folder / STORE, fill)
    return scalars


def _write_texts(connection: sqlite3.Connection, documents: DocumentTokens, vocabulary: Vocabulary) -> None:
    """The documents' texts for searching, with an index of words where this SQLite can make one."""
    connection.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT)")
    texts = ((d, vocabulary.text(documents.tokens(d)).replace("\0", " ")) for d in documents.numbers())
    connection.executemany("INSERT INTO texts VALUES (?, ?)", texts)
    if has_fts5(connection):
        connection.execute(WORDS)
        connection.execute("INSERT INTO words(words) VALUES ('rebuild')")


def search_digest(blobs: Blobs) -> bytes:
    """A hash of what a search by words reads: the texts, and the index of words where there is one."""
    digest = hashlib.blake2b(digest_size=16)
    statements = ["SELECT id, text FROM texts ORDER BY id"]
    if list(blobs.query("SELECT 1 FROM sqlite_schema WHERE name = 'words_data'")):
        statements += [
            "SELECT id, block FROM words_data ORDER BY id",
            "SELECT segid, term, pgno FROM words_idx ORDER BY segid, term",
        ]
    for statement in statements:
        for row in blobs.query(statement):
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _events_by_document(collection: Collection) -> Iterator[tuple[int, bytes]]:
    """Every document's events as `PlacedEvents` unpacks them, sorted by position, then latent."""
    buffers = [(NAMES.index(name), collection.buffers[name].place) for name in INDEXED]
    numbers = collection.documents.numbers()
    total = sum(int((place != EMPTY).sum()) for _, place in buffers)
    # so many documents together that about _EVENTS_AT_ONCE events stand in them
    together = max(1, len(numbers) * _EVENTS_AT_ONCE // max(total, 1))
    for first in range(0, len(numbers), together):
        low = numbers[first] << keys.POSITION_BITS
        high = (numbers[min(first + together, len(numbers)) - 1] + 1) << keys.POSITION_BITS
        columns = []
        for kind, places in buffers:
            row, slot = ((places >= low) & (places < high)).nonzero(as_tuple=True)
            kinds = np.full(len(row), kind, np.uint8)
            columns.append((places[row, slot].cpu().numpy(), row.int().cpu().numpy(), kinds))
        place, latent, kind = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        by = np.lexsort((kind, latent, place))
        place, latent, kind = place[by], latent[by].astype("<i4"), kind[by]
        position = (place & ((1 << keys.POSITION_BITS) - 1)).astype("<i4")
        here = np.array(numbers[first : first + together], np.int64)
        begins, ends = (np.searchsorted(place >> keys.POSITION_BITS, here, side) for side in ("left", "right"))
        for number, begin, end in zip(here.tolist(), begins.tolist(), ends.tolist(), strict=True):
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
        """From a blob of the table `events`."""
        count = len(data) // 9
        return cls(
            np.frombuffer(data, "<i4", count),
            np.frombuffer(data, "<i4", count, 4 * count),
            np.frombuffer(data, np.uint8, count, 8 * count),
        )


def scalar_columns(
    collection: Collection,
    events: dict[str, Events],
    tokens_at: Callable[[Events], np.ndarray],
    vocabulary: Vocabulary,
    begin: int,
    end: int,
) -> np.ndarray:
    """The rows [end - begin] of FIELDS of some latents, whose events are given."""
    rows = np.zeros(end - begin, FIELDS)
    count = collection.statistics.count[begin:end].cpu().numpy()
    sums = read_sum(collection.statistics.sums[begin:end].cpu().numpy(), SUM_DIGITS)
    rows["count"], rows["density"] = count, count / max(collection.tokens, 1)
    rows["mean"] = sums / np.maximum(count, 1)
    rows["atom_norm"] = rows["nearest_cos"] = rows["score"] = np.nan
    uniform, top = events["uniform"], events["top"]
    rows["entropy"] = _entropies(uniform.latent.cpu().numpy() - begin, tokens_at(uniform), end - begin)
    latent = top.latent.cpu().numpy() - begin
    first, begins = np.unique(latent, return_index=True)
    rows["max"][first] = top.value.cpu().numpy()[begins]
    rows["top_token"][first] = _most_frequent(latent, begins, tokens_at(top), vocabulary)
    return rows


def token_lookup(documents: DocumentTokens) -> Callable[[Events], np.ndarray]:
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


def _most_frequent(latent: np.ndarray, begins: np.ndarray, token: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """Each latent's most frequent token; of equally frequent ones, that of the stronger event."""
    rank = np.arange(len(latent)) - begins.repeat(np.diff([*begins, len(latent)]))
    pair, where, times = np.unique(latent * (1 << 32) + token, return_index=True, return_counts=True)
    by = np.lexsort((rank[where], -times, pair >> 32))
    leaders = token[where[by[np.unique(pair[by] >> 32, return_index=True)[1]]]]
    names = {t: vocabulary.name(t) for t in np.unique(leaders).tolist()}
    return [names[t] for t in leaders.tolist()]


def _entropies(latent: np.ndarray, token: np.ndarray, width: int) -> np.ndarray:
    """Entropy in bits of the token ids of each latent's events, float64 [F]."""
    pair, times = np.unique(latent * (1 << 32) + token, return_counts=True)
    of = pair >> 32
    share = times / np.bincount(of, times, width)[of]
    return np.maximum(0, np.bincount(of, -share * np.log2(share), width))
