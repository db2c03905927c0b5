"""The table of all latents: the store's scalars filtered and sorted, a million rows without a loop.

    listing = Listing(store.scalars)
    latents = listing.select(Query.parse(filter="density:0.001..0.01,max:3..", sort="-density"), marks)
    latents[200:300]                                   # rows 200 to 299

A column is copied from the memory map and sorted once; a selection is cached until the scalars or the marks change.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# the page's name of a column -> field of the store's scalars
FIELDS = {
    "count": "count",
    "density": "density",
    "max": "max",
    "mean": "mean",
    "entropy": "entropy",
    "norm": "atom_norm",
    "cosine": "nearest_cos",
    "score": "score",
}
STABILITY = "stability"
"""The column that `sae match` gives."""
JUDGED = ("detection", "fuzzing", "simulation")
"""The columns that `sae explain --score` gives: scores of names against texts of near latents."""
NUMBERS = (*FIELDS, STABILITY, *JUDGED)
SORTS = ("latent", *NUMBERS, "name")
MARKS = ("", "named", "labelled", "bookmarked")
_KEPT = 16  # selections in the cache; one of a million latents takes 4 MB


class QueryError(ValueError):
    """A filter or sort in the page's address cannot be read; the message names it and the known ones."""


@dataclass(frozen=True)
class Query:
    """Which latents the table shows, and in which order."""

    ranges: tuple[tuple[str, float, float], ...] = ()
    """Column, lowest and highest value, both included."""
    text: str = ""
    """Part of a name, a label, or the strongest token, in any case."""
    mark: Literal["", "named", "labelled", "bookmarked"] = ""
    """Only latents with such a mark."""
    sort: str = "latent"
    """Column to sort by, with `-` in front for the largest first; latents without a value always come last."""

    @classmethod
    def parse(cls, *, filter: str = "", text: str = "", mark: str = "", sort: str = "latent") -> Query:
        """Read the query of the page's address.

        Raises:
            QueryError: an unknown column or mark, or a bound that is no number.
        """
        ranges = []
        for part in filter.split(",") if filter else ():
            name, colon, bounds = part.partition(":")
            low, dots, high = bounds.partition("..")
            if name not in ("latent", *NUMBERS) or not colon or not dots:
                raise QueryError(f"filter {part!r}: expected COLUMN:LOW..HIGH with a column of {', '.join(NUMBERS)}")
            try:
                bounds = (float(low or "-inf"), float(high or "inf"))
            except ValueError:
                raise QueryError(f"filter {part!r}: {low!r} and {high!r} must be numbers or empty") from None
            ranges.append((name, *bounds))
        if sort.removeprefix("-") not in SORTS:
            raise QueryError(
                f"sort {sort!r}: expected one of {', '.join(SORTS)}, with - in front for the largest first"
            )
        if mark not in MARKS:
            raise QueryError(f"mark {mark!r}: expected one of {', '.join(MARKS[1:])}")
        return cls(tuple(ranges), text.strip().casefold(), mark, sort)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Marks:
    """Annotations by people, explanations by `sae explain` and measurements by `sae steer --measure`."""

    names: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Latent -> its explanation: "name", "score", ..."""
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Latent -> "label", "bookmark", "note"."""
    steering: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Latent -> what steering with it does: "rows", "proposed", ..."""
    scores: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Latent -> scorer -> what it found of the name: "detection", "fuzzing", "simulation", ..."""
    revision: int = 0
    """Changes with every change of the others."""

    def title(self, latent: int) -> str:
        """A latent's label, else its name, else ""."""
        label = self.notes.get(latent, {}).get("label")
        return label or self.names.get(latent, {}).get("name") or ""

    @cached_property
    def scorer(self) -> str | None:
        """The scorer that judged most names, whose scores the table shows; the first by name of several."""
        counts = Counter(scorer for entries in self.scores.values() for scorer in sorted(entries))
        return max(sorted(counts), key=lambda scorer: counts[scorer], default=None)

    def judged(self, measure: str) -> dict[int, float]:
        """That scorer's scores by a measure against texts of near latents."""
        scorer = self.scorer
        found = {i: (entries.get(scorer, {}).get(measure) or {}).get("near") for i, entries in self.scores.items()}
        return {latent: compared["value"] for latent, compared in found.items() if compared}

    def having(self, mark: str) -> list[int]:
        """The latents with such a mark, ascending."""
        if mark == "named":
            return sorted(self.names)
        key = {"labelled": "label", "bookmarked": "bookmark"}[mark]
        return sorted(latent for latent, note in self.notes.items() if note.get(key))


class Listing:
    """Sorted and filtered views of one revision of a store's scalars, with the scores of later explanations.

    `stability` [F] comes from `sae match`; NaN, like None, where it is unknown. `judged` has scores of names by measure
    and latent.
    """

    def __init__(
        self,
        scalars: NDArray[Any],
        scores: dict[int, float] | None = None,
        stability: NDArray[np.float32] | None = None,
        judged: Mapping[str, Mapping[int, float]] | None = None,
    ) -> None:
        self.width = len(scalars)
        self._scalars = scalars
        self._scores = {latent: score for latent, score in (scores or {}).items() if latent < self.width}
        unknown = np.full(self.width, np.nan, np.float32)
        known = stability is not None and len(stability) == self.width
        self._columns: dict[str, NDArray[Any]] = {
            "latent": np.arange(self.width, dtype=np.int32),
            STABILITY: stability if stability is not None and known else unknown,
        }
        for name in JUDGED:
            self._columns[name] = unknown.copy()
            values = {i: value for i, value in (judged or {}).get(name, {}).items() if i < self.width}
            self._columns[name][list(values)] = list(values.values())
        self._orders: dict[str, NDArray[np.int32]] = {}
        self._tokens: NDArray[Any] | None = None
        self._selections: OrderedDict[tuple[Query, int], NDArray[np.int32]] = OrderedDict()
        self._lock = threading.RLock()

    def column(self, name: str) -> NDArray[Any]:
        """One column [F], contiguous in memory."""
        with self._lock:
            if name not in self._columns:
                column = self._scalars[FIELDS[name]].copy()
                if name == "score":
                    column[list(self._scores)] = list(self._scores.values())
                self._columns[name] = column
            return self._columns[name]

    def select(self, query: Query, marks: Marks) -> NDArray[np.int32]:
        """The latents that pass the query, in its order, int32 [n]."""
        key = (query, marks.revision)
        with self._lock:
            if key not in self._selections:
                self._selections[key] = self._select(query, marks)
                while len(self._selections) > _KEPT:
                    self._selections.popitem(last=False)
            self._selections.move_to_end(key)
            return self._selections[key]

    def place_of(self, latent: int, query: Query, marks: Marks) -> int | None:
        """The row in which a latent stands, or None where the query leaves it out."""
        rows = np.flatnonzero(self.select(query, marks) == latent)
        return int(rows[0]) if len(rows) else None

    def row(self, latent: int, marks: Marks) -> dict[str, Any]:
        """One row of the table as JSON values; an unknown number is None."""
        values = self._scalars[latent]
        numbers = {name: _json_number(values[source]) for name, source in FIELDS.items()}
        explanation, note = marks.names.get(latent, {}), marks.notes.get(latent, {})
        return {
            "latent": latent,
            **numbers,
            "score": self._scores.get(latent, numbers["score"]),
            **{name: _json_number(self._columns[name][latent]) for name in (STABILITY, *JUDGED)},
            "token": str(values["top_token"]),
            "name": explanation.get("name"),
            "label": note.get("label"),
            "bookmark": bool(note.get("bookmark")),
        }

    def _select(self, query: Query, marks: Marks) -> NDArray[np.int32]:
        kept: NDArray[np.bool_] | None = None
        for name, low, high in query.ranges:
            column = self.column(name)
            passed = (column >= low) & (column <= high)
            kept = passed if kept is None else kept & passed
        if query.mark:
            kept = _only(marks.having(query.mark), self.width, kept)
        if query.text:
            matching = self._token_matches(query.text)
            named = [i for i in {*marks.names, *marks.notes} if i < self.width and query.text in _words(i, marks)]
            matching[named] = True
            kept = matching if kept is None else kept & matching
        order = self._order(query.sort, marks)
        return order if kept is None else order[kept[order]]

    def _token_matches(self, text: str) -> NDArray[np.bool_]:
        if self._tokens is None:
            self._tokens = np.char.lower(self._scalars["top_token"])
        return np.char.find(self._tokens, text) >= 0

    def _order(self, sort: str, marks: Marks) -> NDArray[np.int32]:
        name = sort.removeprefix("-")
        if name == "name":
            return self._by_name(marks, backwards=sort.startswith("-"))
        if sort not in self._orders:
            column = self.column(name)
            # numpy sorts nan last, also among negated values
            keys = -column if sort.startswith("-") else column
            self._orders[sort] = np.argsort(keys, kind="stable").astype(np.int32)
        return self._orders[sort]

    def _by_name(self, marks: Marks, *, backwards: bool) -> NDArray[np.int32]:
        titles = {i: marks.title(i) for i in {*marks.names, *marks.notes} if i < self.width}
        named = sorted((i for i in titles if titles[i]), key=lambda i: (titles[i].casefold(), i), reverse=backwards)
        rest = np.ones(self.width, bool)
        rest[named] = False
        return np.concatenate([np.array(named, np.int32), np.flatnonzero(rest).astype(np.int32)])


def _words(latent: int, marks: Marks) -> str:
    note = marks.notes.get(latent, {})
    parts = (marks.names.get(latent, {}).get("name"), note.get("label"), note.get("note"))
    return "\n".join(part for part in parts if part).casefold()


def _only(latents: list[int], width: int, kept: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    marked = np.zeros(width, bool)
    marked[[i for i in latents if i < width]] = True
    return marked if kept is None else kept & marked


def _json_number(value: Any) -> int | float | None:
    number = value.item()
    if isinstance(number, int):
        return number
    # seven digits are what a float32 holds
    return float(f"{number:.7g}") if np.isfinite(number) else None
