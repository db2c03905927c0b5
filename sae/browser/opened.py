"""A run folder behind the page: its store, which may still grow, its marks and its curves.

run = BrowsedRun(Path("runs/demo"))
view = run.view()                      # the current store with its listing and marks
run.report()                           # configuration, curves, evaluation
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.base.files import CorruptError
from sae.browser.listing import JUDGED, Listing, Marks
from sae.browser.pictures import Pictures
from sae.evaluation.control_table import sentences
from sae.evaluation.matching.scores import FILE as STABILITY_FILE
from sae.evaluation.matching.scores import Scores, read_scores
from sae.evaluation.tables import MEANING, added_tables, beside_controls
from sae.evaluation.words import described
from sae.features.store.annotations import Annotations
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.models.saved import CONFIG, read_config, read_report
from sae.runs.base import kind_of
from sae.runs.metrics import METRICS, read_metrics

CURVE_POINTS = 2000


class View(NamedTuple):
    """One revision of a run's features, with the current marks."""

    store: FeatureStore
    listing: Listing
    marks: Marks
    scores: Scores | None = None
    """What `sae match` found; None where it was not run on these weights."""

    def strength(self, latent: int) -> float:
        """The strength at which a latent's atom is drawn: its largest activation, or 1 where it never fired."""
        return float(self.store.scalars["max"][latent]) or 1.0


class BrowsedRun:
    """One run folder behind the page. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        self._lock = threading.RLock()
        self._store: FeatureStore | None = None
        self._listing: Listing | None = None
        self._marks = Marks()
        self._stability: Scores | None = None
        self._pictures: Pictures | None = None
        self._opening = threading.Lock()
        self._seen: dict[str, tuple[float, int] | None] = {}

    def view(self) -> View:
        """The features as they are on the disk.

        Raises:
            FeatureError: nothing has been collected yet.
        """
        with self._lock:
            fresh_store = self._changed("features.sqlite") | self._changed("features.scalars.npy")
            fresh_marks = self._changed("annotations.sqlite")
            fresh_scores = self._changed(STABILITY_FILE)
            try:
                if fresh_store or self._store is None:
                    # a store of other weights has other marks
                    self._store, fresh_marks = None, True
                    self._store, self._listing = FeatureStore(self.folder), None
                if fresh_marks:
                    self._read_marks(self._store.annotations)
                if fresh_scores or fresh_store:
                    self._stability, self._listing = read_scores(self.folder, self._store.info["weights"]), None
                    self._marks = dataclasses.replace(self._marks, revision=self._marks.revision + 1)
            except BaseException:
                # the next request tries again
                self._seen.clear()
                raise
            if self._listing is None:
                stability = None if self._stability is None else self._stability.stability
                judged = {measure: self._marks.judged(measure) for measure in JUDGED}
                self._listing = Listing(self._store.scalars, _scores(self._marks), stability, judged)
            return View(self._store, self._listing, self._marks, self._stability)

    def info(self) -> dict[str, Any]:
        """What the page's header and every poll need; "features" is None until features are collected."""
        head = {"name": self.name, "folder": str(self.folder), "kind": kind_of(self.folder)}
        try:
            view = self.view()
        except (FeatureError, CorruptError) as error:
            return {**head, "features": None, "reason": str(error)}
        alive = int((view.listing.column("count") > 0).sum())
        features = {**view.store.info, "alive": alive, "marks": view.marks.revision, "scorer": view.marks.scorer}
        return {**head, "features": features, "reason": None}

    def pictures(self) -> Pictures | None:
        """The pictures of a run on images; None for a run on text.

        Raises:
            FeatureError: nothing was collected, or the images are no longer the same.
        """
        info = self.view().store.info
        if info["kind"] != "image":
            return None
        # opening images may take seconds; only requests for images wait for it
        with self._opening:
            if self._pictures is None or self._pictures.revision != info["revision"]:
                self._pictures = Pictures(self.folder, info)
            return self._pictures

    def prepare(self) -> None:
        """Open the images of a run on images, so that a page does not wait for them."""
        with contextlib.suppress(ValueError, OSError):  # a request for an image gets the reason
            if (pictures := self.pictures()) is not None:
                pictures.atom(0, 1.0)

    def annotate(self, latent: int, **changes: Any) -> dict[str, Any]:
        """Set label, bookmark or note of a latent; returns its annotation."""
        with self._lock:
            notes = self.view().store.annotations
            annotation = notes.set(latent, **changes)
            self._changed("annotations.sqlite")
            # names are many and large; they have not changed
            self._marks = dataclasses.replace(self._marks, notes=notes.all(), revision=self._marks.revision + 1)
            return annotation

    def report(self) -> dict[str, Any]:
        """Configuration, training curves, and what the evaluation measured; None where a file is missing."""
        numbers = self._json("eval.json")
        beside = beside_controls(numbers or {})
        return {
            "name": self.name,
            "folder": str(self.folder),
            "config": self._json(CONFIG),
            "eval": None if numbers is None else [m._asdict() for m in described(numbers, kind_of(self.folder))],
            "controls": {"meaning": MEANING, "rows": beside, "said": sentences(numbers or {})}
            if len(beside) > 1
            else None,
            "added": [table._asdict() for table in added_tables(numbers or {})],
            "curves": curves(self.folder),
        }

    def _json(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            return None
        return read_config(self.folder) if name == CONFIG else read_report(self.folder, name)

    def _read_marks(self, notes: Annotations) -> None:
        before = self._marks
        self._marks = Marks(notes.names(), notes.all(), notes.steering(), notes.scores(), before.revision + 1)
        if _scores(before) != _scores(self._marks) or before.scores != self._marks.scores:
            self._listing = None

    def _changed(self, name: str) -> bool:
        """Whether a file has changed since the last call."""
        try:
            status = (self.folder / name).stat()
            now = (status.st_mtime, status.st_size)
        except FileNotFoundError:
            now = None
        changed = name not in self._seen or self._seen[name] != now
        self._seen[name] = now
        return changed


def curves(folder: Path) -> dict[str, list[float | None]] | None:
    """The numbers of a run's metrics.jsonl as columns of at most `CURVE_POINTS` rows; None where there is no file.

    Raises:
        CorruptError: as `read_metrics`.
    """
    if not (folder / METRICS).is_file():
        return None
    lines = read_metrics(folder)
    step = -(-len(lines) // CURVE_POINTS) or 1
    rows = lines[::step] if not lines or (len(lines) - 1) % step == 0 else [*lines[::step], lines[-1]]
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value)))
    return {name: [_finite(row.get(name)) for row in rows] for name in names}


def _scores(marks: Marks) -> dict[int, float]:
    return {i: entry["score"] for i, entry in marks.names.items() if entry.get("score") is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return value if _is_number(value) and np.isfinite(value) else None
