"""Reading features: every latent's record, examples, documents, and the columns to sort and filter by.

store = FeatureStore("runs/demo")
store.info["tokens"], store.scalars["density"]
store.record(17)["examples"][0]["tokens"]
"""

from __future__ import annotations

import contextlib
import io
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sae.base.files import CorruptError, parse_json
from sae.base.npz import shape_and_type
from sae.base.reading import reading
from sae.features.store import records, windows
from sae.features.store.annotations import Annotations
from sae.features.store.database import COLLECT_AGAIN, Blobs, has_fts5, open_read_only
from sae.features.store.keys import FeatureError
from sae.features.store.lens import Lens
from sae.features.store.records import Example, Record
from sae.features.store.text import Vocabulary
from sae.features.store.writer import (
    FIELDS,
    FORMAT,
    PARTS,
    READABLE,
    SCALARS,
    STORE,
    TABLES,
    PlacedEvents,
    search_digest,
)
from sae.models.saved import CONFIG, WEIGHTS, read_config


class FeatureStore:
    """The features of a run, as they were when this was opened.

    Read-only, and safe to use from several threads.

    Raises:
        FeatureError: the folder has no features.
        CorruptError: they are damaged; so may every method.
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.folder = Path(run_folder).expanduser()
        path = self.folder / STORE
        if not path.is_file():
            raise FeatureError(f"{self.folder}: no features there; collect them first: sae features {self.folder}")
        self._lock = threading.RLock()
        self.blobs = Blobs(open_read_only(path, TABLES), path)
        with self._reading():
            self.info: dict[str, Any] = parse_json(self._part("info"))
        """What was collected, from which data, and how far; every rewrite has another "revision"."""
        if self.info.get("format") not in READABLE:
            raise FeatureError(
                f"{path}: format {self.info.get('format')}, expected {FORMAT}; collect again: sae features RUN"
            )
        with self._reading():
            self._check_weights()
            self._search_checked = self.info["format"] < 2  # older stores have no hash of what a search reads
            self.vocabulary = Vocabulary.unpack(self._part("vocabulary"))
            self.annotations = Annotations(self.folder, self.info["weights"])
            self.lens = Lens(self.folder, self.info["weights"])
            self.scalars = self._map_scalars()
        """Columns of all latents, a structured array [F]; see `writer.FIELDS`."""
        self.has_fts5 = has_fts5(self.blobs.connection)
        """Whether this SQLite can use the index of words."""
        self.raw = lru_cache(4096)(self._record)
        """A latent's record as it was collected; see `records.Record`."""
        self.tokens = lru_cache(1024)(self._tokens)
        """Token ids of a document, int32; -1 where a token was left out before it was stored."""

    @property
    def width(self) -> int:
        """F, the number of latents."""
        return self.info["width"]

    def close(self) -> None:
        with self._lock:
            self.blobs.connection.close()

    def record(self, latent: int) -> dict[str, Any]:
        """A latent's statistics, examples and bands, as JSON values; FeatureError where there is no such latent."""
        record = self.raw(latent)
        with self._reading():
            events = records.examples(record, self.info["seed"])
            return {
                "latent": latent,
                **records.statistics_of(record, self.info["tokens"]),
                "examples": [self.example(example) for example in events],
                "bands": records.bands(record, events),
            }

    def document(self, document: int) -> dict[str, Any]:
        """A document's tokens, as strings and ids; FeatureError where it has no example."""
        ids = self.tokens(document)
        with self._reading():
            return {"tokens": self.vocabulary.display(ids), "token_ids": ids.tolist()}

    def events_in(self, document: int) -> PlacedEvents:
        """A document's events in the top and uniform buffers."""
        data = self._get("events", document)
        if data is None and self.info["format"] >= 2:
            raise CorruptError(f"{self.folder / STORE}: the events of document {document} are missing; {COLLECT_AGAIN}")
        with self._reading():
            return PlacedEvents.unpack(data or b"")

    def check_search(self) -> None:
        """Compare what a search by words reads with its hash, once.

        Raises:
            CorruptError: it was damaged.
        """
        with self._lock:
            if not self._search_checked and search_digest(self.blobs) != self._part("search"):
                raise CorruptError(f"{self.folder / STORE}: the texts or their index are damaged; {COLLECT_AGAIN}")
            self._search_checked = True

    def logits(self, latent: int) -> dict[str, Any]:
        """The 20 tokens that a latent makes most and least likely, see `Lens.logits`; computed once.

        Raises:
            UndefinedError: the atoms do not lie where an unembedding reads; a FeatureError.
        """
        top, bottom = self.lens.logits(self._checked(latent))

        def listed(pairs: list[tuple[int, float]]) -> list[dict[str, Any]]:
            return [{"token": self.vocabulary.name(token), "value": value} for token, value in pairs]

        return {"top": listed(top), "bottom": listed(bottom)}

    def neighbours(self, latent: int) -> list[dict[str, Any]]:
        """The 10 latents whose atoms are nearest, with cosines; computed once."""
        return [{"latent": i, "cosine": c} for i, c in self.lens.neighbours(self._checked(latent))]

    def query(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT on the store's own tables."""
        with self._lock:
            return list(self.blobs.query(statement, values))

    def example(self, example: Example) -> dict[str, Any]:
        """An event with the tokens around it, as JSON values."""
        ids = self.tokens(example.document)
        start = max(0, example.position - windows.BACK)
        end = min(len(ids), example.position + windows.AHEAD + 1)
        shown = self.vocabulary.display(ids, start, end)
        first = start - example.position + windows.BACK
        return {
            "band": example.band,
            "value": example.value,
            "key": example.key,
            "document": example.document,
            "position": example.position,
            "start": start,
            "tokens": shown,
            "token_ids": ids[start:end].tolist(),
            "values": example.window[first : first + end - start].tolist(),
            "peak": example.position - start,
        }

    def _check_weights(self) -> None:
        """Refuse features of other weights than the run's, where a run lies in the folder."""
        if not (self.folder / CONFIG).is_file():
            return
        weights = (read_config(self.folder).get("autoencoder") or {}).get("sha256")
        if weights is not None and weights != self.info["weights"]:
            raise CorruptError(f"{self.folder / STORE}: it is of other weights than {WEIGHTS} here; {COLLECT_AGAIN}")

    def _checked(self, latent: int) -> int:
        if not 0 <= latent < self.width:
            raise FeatureError(f"latent {latent}: this run has latents 0 to {self.width - 1}")
        return latent

    def _get(self, table: str, index: int) -> bytes | None:
        with self._lock:
            return self.blobs.get(table, index)

    def _part(self, name: str) -> bytes:
        data = self._get("parts", PARTS[name])
        if data is None:
            raise CorruptError(f"{self.folder / STORE}: {name} is missing; collect again: sae features RUN")
        return data

    def _record(self, latent: int) -> Record:
        data = self._get("records", self._checked(latent))
        if data is None:
            raise CorruptError(f"{self.folder / STORE}: the record of latent {latent} is missing")
        with self._reading():
            return records.unpack(data)

    def _tokens(self, document: int) -> np.ndarray:
        data = self._get("documents", document)
        if data is None:
            raise FeatureError(f"{self.folder / STORE}: document {document}: no example of these features stands in it")
        with self._reading():
            return np.frombuffer(data, "<i4")

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        """Names the file in what is raised for a blob that was written wrongly."""
        return reading(self.folder / STORE, remedy="collect again: sae features RUN")

    def _map_scalars(self) -> np.ndarray:
        """The mapped file, or the database's copy where the file is from another writing; scores are filled in."""
        inside = self._part("scalars")
        if shape_and_type(io.BytesIO(inside)) != ((self.width,), FIELDS):
            raise CorruptError(f"{self.folder / STORE}: scalars of another shape; collect again: sae features RUN")
        path = self.folder / SCALARS
        if path.is_file() and path.read_bytes() == inside:
            # copied on write: the scores filled in below change nothing on the disk
            scalars = np.load(path, mmap_mode="c", allow_pickle=False)
        else:
            scalars = np.load(io.BytesIO(inside), allow_pickle=False)
        for latent, value in self.annotations.names().items():
            if latent < self.width and isinstance(value.get("score"), (int, float)):
                scalars["score"][latent] = value["score"]
        return scalars


def read_info(path: Path) -> dict[str, Any]:
    """The info of a store's file alone."""
    with contextlib.closing(open_read_only(path, TABLES)) as connection:
        data = Blobs(connection, path).get("parts", PARTS["info"])
    if data is None:
        raise CorruptError(f"{path}: info is missing; collect again: sae features RUN")
    with reading(path):
        return parse_json(data)
