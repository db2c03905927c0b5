"""Where the added cross-entropy arises: the losses of spliced passes by position and by class of the token.

Every token with a loss is sorted four times (`PARTITIONS`), so the mean over the classes of one partition, weighted by
their tokens, is the delta CE of the whole. `position` and `kind` concern the token that is read last, which is the one
that is replaced or not; `word` and `frequency` concern the token that is predicted.

    sort = TokenClasses(tokenizer)
    sort.count(training_ids)                         # for `frequency`
    membership = sort(read, kind, position, following)   # [n, len(CLASSES)], four ones a row
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.evaluation.bootstrap import GroupSums
from sae.harvest.stream import KINDS

DOUBLINGS = 24
"""Classes of positions: contexts of up to 2^23 tokens."""
FIRST_OF_WORD, INSIDE_WORD = "first of a word", "inside a word"
WORDS = (FIRST_OF_WORD, INSIDE_WORD, "number", "punctuation", "whitespace", "part of a character", "special")
RANKS = (10, 100, 1_000)
"""Upper limits of the ranks of frequent tokens."""
FREQUENCIES = ("10 most frequent", "rank 11 to 100", "rank 101 to 1,000", "rarer", "not among the training tokens")
LOST = "\ufffd"


def _positions() -> tuple[str, ...]:
    ranges = [(2**i // 2 + 1, 2**i) for i in range(1, DOUBLINGS)]
    return ("1", *(f"{high:,}" if low == high else f"{low:,} to {high:,}" for low, high in ranges))


class Partition(NamedTuple):
    """One way to sort tokens."""

    title: str
    classes: tuple[str, ...]
    meaning: str
    """What the classes are, in a sentence."""


PARTITIONS = {
    "position": Partition(
        "Tokens read",
        _positions(),
        "how many tokens of its segment the model has read when it predicts, the one that begins a segment included",
    ),
    "kind": Partition(
        "Token read last",
        KINDS,
        "only ordinary tokens are replaced by their reconstruction; beginnings of segments (BOS), special tokens and "
        "sinks, tokens of very large norm, stay as they are",
    ),
    "word": Partition("Token predicted", WORDS, "its text, and whether it continues the word of the token before it"),
    "frequency": Partition(
        "Frequency of the token predicted", FREQUENCIES, "its rank among the training tokens that were counted"
    ),
}
"""Name in eval.json -> how tokens are sorted."""
CLASSES = tuple((name, label) for name, partition in PARTITIONS.items() for label in partition.classes)
"""Columns of a membership: partition and class."""


class TokenClasses:
    """Sorts the tokens that have a loss.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._forms: dict[int, _Form] = {}
        self._counts = torch.zeros(0, dtype=torch.int64)

    @property
    def counted(self) -> int:
        """Training tokens counted so far; without any, `frequency` is left out."""
        return int(self._counts.sum())

    def count(self, tokens: Tensor) -> None:
        """Count ids of training tokens, int64 [n]."""
        more = torch.bincount(tokens.cpu(), minlength=len(self._counts))
        more[: len(self._counts)] += self._counts
        self._counts = more

    def __call__(self, read: Tensor, kind: Tensor, position: Tensor, following: Tensor) -> Tensor:
        """The classes of tokens as ones, float32 [n, len(CLASSES)] on the CPU.

        Args:
            read: ids of the tokens that are read last, int64 [n].
            kind: their kinds [n], as of `Harvest.token_kinds`.
            position: their positions in their segments, from 0, [n].
            following: ids of the tokens that are predicted, int64 [n].
        """
        read, kind, position, following = (column.cpu().long() for column in (read, kind, position, following))
        sorted_by = {"position": _doubling(position + 1), "kind": kind, "word": self._word(read, following)}
        if self.counted:
            sorted_by["frequency"] = self._frequency(following)
        membership, first = torch.zeros(len(read), len(CLASSES)), 0
        for name, partition in PARTITIONS.items():
            if name in sorted_by:
                membership.scatter_(1, first + sorted_by[name].unsqueeze(1), 1.0)
            first += len(partition.classes)
        return membership

    def _word(self, read: Tensor, following: Tensor) -> Tensor:
        classes = [
            FIRST_OF_WORD if word == INSIDE_WORD and (begins or not before_continues) else word
            for (word, begins, _), (_, _, before_continues) in zip(
                map(self._form, following.tolist()), map(self._form, read.tolist()), strict=True
            )
        ]
        return torch.tensor([WORDS.index(word) for word in classes], dtype=torch.int64)

    def _frequency(self, following: Tensor) -> Tensor:
        order = self._counts.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        known = following < len(self._counts)
        inside = following.clamp_max(len(self._counts) - 1)
        classes = torch.bucketize(rank[inside], torch.tensor(RANKS), right=True)
        return classes.where(known & (self._counts[inside] > 0), torch.tensor(len(FREQUENCIES) - 1))

    def _form(self, token: int) -> _Form:
        if token not in self._forms:
            self._forms[token] = _form("", True) if token in self._special else _form(self._text(token))
        return self._forms[token]

    def _text(self, token: int) -> str:
        """A token's text behind another one: what the same token adds when it follows itself."""
        once, twice = (
            self._tokenizer.decode([token] * n, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for n in (1, 2)
        )
        return twice[len(once) :] if twice.startswith(once) else once


class _Form(NamedTuple):
    """What a token's text says of its class."""

    word: str
    """Its class; `INSIDE_WORD` for every token with a letter."""
    begins: bool
    """Whether it begins with whitespace."""
    continues: bool
    """Whether a letter behind it continues its word."""


def _form(text: str, special: bool = False) -> _Form:
    begins, continues = text[:1].isspace(), any(map(_is_letter, text[-1:])) or text[-1:].isnumeric()
    if special:
        return _Form("special", False, False)
    if LOST in text or not text:
        return _Form("part of a character", begins, True)
    if any(map(_is_letter, text)):
        return _Form(INSIDE_WORD, begins, continues)
    if any(c.isnumeric() for c in text):
        return _Form("number", begins, continues)
    return _Form("whitespace" if text.isspace() else "punctuation", begins, continues)


def _is_letter(character: str) -> bool:
    """Whether it is a letter, or a mark that is combined with one (vowel signs of Indic scripts)."""
    return character.isalpha() or unicodedata.category(character).startswith("M")


def _doubling(count: Tensor) -> Tensor:
    """0 for 1, 1 for 2, 2 for 3 to 4, 3 for 5 to 8 and so on, int64 [n]."""
    edges = 2 ** torch.arange(DOUBLINGS - 1)
    return torch.bucketize(count, edges)


def added_by_class(
    sums: GroupSums, spliced: Mapping[str, str], *, counted: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Delta CE of every class that occurs, with intervals over documents.

    Args:
        sums: of `Downstream` with a `TokenClasses`.
        spliced: name of a control -> the name of its losses in `sums`.
        counted: training tokens behind `frequency`.

    Returns:
        Partition -> rows: "class", "tokens", "documents", "ce_clean", "delta_ce", and the delta CE of the "controls" on
        the same tokens; and "counted".
    """

    def added(place: int, name: str) -> Any:
        return sums.interval(
            lambda s: (s[f"class.{name}"][:, place] - s["class.clean"][:, place]) / s["class.count"][:, place],
            resamples=resamples,
            seed=seed,
        )

    partitions: dict[str, Any] = {"counted": counted}
    tokens = sums.sums["class.count"].sum(0)
    for place, (partition, label) in enumerate(CLASSES):
        if not tokens[place]:
            continue
        clean = sums.interval(
            lambda s, at=place: s["class.clean"][:, at] / s["class.count"][:, at], resamples=resamples, seed=seed
        )
        row = {
            "class": label,
            "tokens": int(tokens[place]),
            "ce_clean": clean,
            "delta_ce": added(place, "spliced"),
            "controls": {control: added(place, name) for control, name in spliced.items()},
        }
        partitions.setdefault(partition, []).append(row)
    return partitions
