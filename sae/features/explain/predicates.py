"""Statements about a token in its document, in everyday words.

    text = DocumentText(tokens)                # display strings of a document
    text.describe(position)["word"]            # ("river",)

A **family** is one kind of statement (which token it is, what came before, the words of the document); its values are
strings. `Facts` has the values of many tokens as integers, so that counting them is fast.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

FAMILIES = (
    "token",  # the token as it is written, with its leading space
    "word",  # the word that it belongs to, in lower case
    "like",  # its group of tokens that the model treats alike, see `naming`
    "ending",  # last three letters of that word
    "beginning",  # first letter, or two, of the token
    "case",
    "kind",  # number, punctuation, script, ...
    "piece",  # which part of a word the token is
    "place",  # where in the text and in its sentence
    "previous",  # the word before
    "before",  # the two words before
    "next",  # the word after
    "near",  # words among the dozen before
    "topic",  # words of the document
)
NEAR_WORDS = 12
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE_END = re.compile(r"[.!?]['\")\]”’]*\s*$")
_KINDS = (
    ("year", re.compile(r"(1\d|20)\d\d")),
    ("number", re.compile(r"\d[\d.,]*")),
    ("opening bracket", re.compile(r"[(\[{]+")),
    ("closing bracket", re.compile(r"[)\]}]+[.,;:]?")),
    ("quotation mark", re.compile('["“”«»‘’]+[.,;:]?')),
    ("dash", re.compile(r"[-–—]+")),
    ("full stop", re.compile(r"[.!?]+")),
    ("comma", re.compile(r",")),
    ("colon or semicolon", re.compile(r"[:;]+")),
)


class DocumentText:
    """A document's tokens and words, from which each token can be described."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.text = "".join(self.tokens)
        ends = np.cumsum([len(t) for t in self.tokens], dtype=np.int64)
        blanks = np.array([len(t) - len(t.lstrip()) for t in self.tokens], dtype=np.int64)
        lengths = np.array([len(t) for t in self.tokens], dtype=np.int64)
        self.begin = ends - lengths
        self.core = np.minimum(self.begin + blanks, ends)
        self.end = ends
        spans = [(m.start(), m.end()) for m in _WORD.finditer(self.text)]
        self.word_begin = [a for a, _ in spans]
        self.word_end = [b for _, b in spans]
        self.words = [self.text[a:b].lower() for a, b in spans]

    @cached_property
    def topic(self) -> tuple[str, ...]:
        """The document's words of three letters or more, each once."""
        return tuple(sorted({w for w in self.words if len(w) > 2 and not w.isdigit()}))

    def describe(self, position: int) -> dict[str, tuple[str, ...]]:
        """Values of every family but `like` and `topic` for the token at `position`."""
        token = self.tokens[position]
        core = token.strip()
        at = self._word_at(position)
        # words that end before the token's own word, or before the token where it is none
        start = self.word_begin[at] if at is not None else int(self.core[position])
        earlier = bisect.bisect_right(self.word_end, start)
        later = bisect.bisect_left(self.word_begin, int(self.end[position])) if at is None else at + 1
        word = self.words[at] if at is not None else None
        said: dict[str, tuple[str, ...]] = {
            "token": (token,) if token else (),
            "kind": (
                _kind(core if word is None or not core.isdigit() else self.text[start : self.word_end[at or 0]], token),
            ),
            "place": self._places(position, start),
            "near": tuple(dict.fromkeys(self.words[max(0, earlier - NEAR_WORDS) : earlier])),
        }
        if word is not None:
            said["word"] = (word,)
            said["piece"] = (self._piece(position, at or 0),)
            if len(word) > 4 and word.isalpha():
                said["ending"] = (word[-3:],)
        if core[:1].isalpha():
            said["beginning"] = (core[0].lower(),) + ((core[:2].lower(),) if core[1:2].isalpha() else ())
        if core.lower() != core.upper():
            said["case"] = (_case(core, self.text[start : start + 1]),)
        if earlier:
            said["previous"] = (self.words[earlier - 1],)
        if earlier > 1:
            said["before"] = (f"{self.words[earlier - 2]} {self.words[earlier - 1]}",)
        if later < len(self.words):
            said["next"] = (self.words[later],)
        return said

    def _word_at(self, position: int) -> int | None:
        """Index of the word that the token shares a character with."""
        if self.core[position] == self.end[position]:
            return None
        index = bisect.bisect_right(self.word_begin, int(self.core[position])) - 1
        if index >= 0 and self.word_end[index] > self.core[position]:
            return index
        # a token may carry a mark before its word
        if index + 1 < len(self.words) and self.word_begin[index + 1] < self.end[position]:
            return index + 1
        return None

    def _piece(self, position: int, word: int) -> str:
        starts = self.core[position] <= self.word_begin[word]
        ends = self.end[position] >= self.word_end[word]
        return {(True, True): "whole word", (True, False): "start of a word", (False, True): "end of a word"}.get(
            (bool(starts), bool(ends)), "middle of a word"
        )

    def _places(self, position: int, start: int) -> tuple[str, ...]:
        before = self.text[max(0, start - 200) : start]
        places = []
        if not before.strip():
            places.append("first word of the text")
        elif position < 8:
            places.append("first tokens of the text")
        elif position < 24:
            places.append("early in the text")
        if _SENTENCE_END.search(before):
            places.append("start of a sentence")
        if before.rstrip(" ").endswith("\n"):
            places.append("start of a line")
        if before.rfind("(") > before.rfind(")"):
            places.append("in brackets")
        if before.count('"') % 2 or before.rfind("“") > before.rfind("”"):
            places.append("in quotation marks")
        return tuple(places)


def _case(core: str, word_start: str) -> str:
    letters = [c for c in core if c.isalpha()]
    if len(letters) > 1 and all(c.isupper() for c in letters):
        return "all capitals"
    return "capitalised" if word_start[:1].isupper() else "lower case"


def _kind(core: str, token: str) -> str:
    if not core:
        return "line break" if "\n" in token else "white space"
    for name, pattern in _KINDS:
        if pattern.fullmatch(core):
            return name
    letter = next((c for c in core if c.isalpha()), None)
    if letter is None:
        return "symbol"
    script = unicodedata.name(letter, "unknown").split()[0].lower()
    if script != "latin":
        return f"{script} script"
    return "accented word" if any(ord(c) > 127 and c.isalpha() for c in core) else "word"


class Terms:
    """Numbers for (family, value) pairs, in the order in which they occur."""

    def __init__(self) -> None:
        self.number: dict[tuple[str, str], int] = {}
        self.names: list[tuple[str, str]] = []
        self._families = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, family: str, values: Iterable[str]) -> list[int]:
        """Numbers of some values of a family."""
        numbers = []
        for value in values:
            key = (family, value)
            if key not in self.number:
                self.number[key] = len(self.names)
                self.names.append(key)
            numbers.append(self.number[key])
        return numbers

    def families(self) -> np.ndarray:
        """Index in FAMILIES of every number's family, uint8."""
        if len(self._families) < len(self.names):
            more = [FAMILIES.index(family) for family, _ in self.names[len(self._families) :]]
            self._families = np.concatenate([self._families, np.array(more, np.uint8)])
        return self._families


class Ragged(NamedTuple):
    """Lists of different lengths, one for each token."""

    items: np.ndarray
    """int32 [sum of lengths]"""
    lengths: np.ndarray
    """int64 [tokens]"""

    @property
    def rows(self) -> np.ndarray:
        """The token of every item, int64."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def take(self, tokens: np.ndarray) -> Ragged:
        """The lists of some tokens, given by their indices."""
        lengths = self.lengths[tokens]
        begins = (np.cumsum(self.lengths) - self.lengths)[tokens]
        skipped = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        return Ragged(self.items[skipped + np.arange(len(skipped))], lengths)

    def best(self, weight: np.ndarray) -> np.ndarray:
        """For every token the largest weight among its items, at least 0; `weight` is float [vocabulary]."""
        largest = np.zeros(len(self.lengths))
        filled = self.lengths > 0
        if filled.any():
            starts = (np.cumsum(self.lengths) - self.lengths)[filled]
            largest[filled] = np.maximum(np.maximum.reduceat(weight[self.items], starts), 0)
        return largest


Facts = dict[str, Ragged]
"""Family -> its values for each of some tokens."""


def gather(lists: Sequence[np.ndarray], terms: Terms) -> Facts:
    """Facts of several tokens, each given as the numbers of all its values, int32."""
    items = np.concatenate(lists) if lists else np.empty(0, np.int32)
    rows = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
    family = terms.families()[items]
    facts: Facts = {}
    for index, name in enumerate(FAMILIES):
        mine = family == index
        facts[name] = Ragged(items[mine], np.bincount(rows[mine], minlength=len(lists)))
    return facts
