"""The texts on which a latent's name is scored: where the latent fires, random ones, and those of near latents.

    texts = TextSource(scan, store, neighbours).texts(17, each=10, seed=0)
    texts.fires, texts.random, texts.near

A text is a window of up to 33 tokens. The latent fires in it, or at none of its tokens: that is known exactly (`scan`).
In a text of a near latent, the token in the middle is one at which a neighbour fires strongly: a latent with one of the
nearest atoms, or one that often fires at the same tokens. These are the hard negatives of Paulo et al. 2024 (delphi's
`neighbours`): a name that only tells the subject is right about random texts and wrong about these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sae.features.explain.scan import Scan
from sae.features.store import keys
from sae.features.store.store import FeatureStore

BANDS = 5  # quantiles of the activation with equally many texts
MARKED = 0.3  # share of a text's largest activation from which a token is marked, as in delphi's fuzzing


class Text(NamedTuple):
    """A window of t tokens in a held-out document."""

    rows: np.ndarray
    """Its tokens in the scan, int64 [t]."""
    tokens: tuple[str, ...]
    document: int
    activation: np.ndarray
    """The latent's, float32 [t]; all 0 where it is silent."""
    near: int | None = None
    """In a text of a near latent, that latent."""
    near_activation: np.ndarray | None = None
    """That latent's activations, float32 [t]."""


class LatentTexts(NamedTuple):
    """Texts of one latent; no two overlap."""

    fires: list[Text]
    """Equally many of every fifth of its activations, where there are."""
    random: list[Text]
    near: list[Text]


class TextSource:
    """Draws texts from a scan.

    Args:
        scan: held-out tokens with their codes.
        store: collected features, for the tokens' strings.
        neighbours: latent -> its near latents, the most alike first.
    """

    def __init__(self, scan: Scan, store: FeatureStore, neighbours: Callable[[int], Sequence[int]]) -> None:
        self.scan, self.store, self.neighbours = scan, store, neighbours
        self._strings = lru_cache(maxsize=4096)(self._strings_of)

    def texts(self, latent: int, each: int, seed: int) -> LatentTexts:
        """At most `each` texts of every kind; the same for the same seed."""
        draw = np.random.default_rng([seed, latent])
        activation = self.scan.activations(latent)
        fired = np.concatenate([[0], np.cumsum(activation > 0)])
        silent = fired[self.scan.end] == fired[self.scan.begin]
        taken = np.zeros(len(activation), dtype=bool)
        rows, values = self.scan.firings(latent)
        fires = self._take(_in_bands(rows, values, draw), each, taken)
        near = self._near(latent, each, silent, taken)
        random = self._take(draw.permutation(np.flatnonzero(silent)), each, taken)
        return LatentTexts(
            [self._text(row, activation) for row in fires],
            [self._text(row, activation) for row in random],
            [self._text(row, activation, neighbour) for row, neighbour in near],
        )

    def _near(self, latent: int, each: int, silent: np.ndarray, taken: np.ndarray) -> list[tuple[int, int]]:
        """Tokens at which neighbours fire most, and whose windows the latent is silent in; each neighbour in turn."""
        queues = []
        for neighbour in self.neighbours(latent):
            rows, values = self.scan.firings(neighbour)
            rows = rows[np.argsort(-values, kind="stable")]
            queues.append((int(neighbour), iter(rows[silent[rows]].tolist())))
        texts: list[tuple[int, int]] = []
        while queues and len(texts) < each:
            neighbour, rows = queues.pop(0)
            row = next((row for row in rows if self._free(row, taken)), None)
            if row is not None:
                texts.append((row, neighbour))
                queues.append((neighbour, rows))
        return texts

    def _take(self, rows: np.ndarray, count: int, taken: np.ndarray) -> list[int]:
        """The first `count` tokens whose windows overlap no text taken before."""
        kept: list[int] = []
        for row in rows.tolist():
            if len(kept) == count:
                break
            if self._free(row, taken):
                kept.append(row)
        return kept

    def _free(self, row: int, taken: np.ndarray) -> bool:
        """Whether a token's window is untouched; it is taken then."""
        window = slice(self.scan.begin[row], self.scan.end[row])
        if taken[window].any():
            return False
        taken[window] = True
        return True

    def _text(self, row: int, activation: np.ndarray, near: int | None = None) -> Text:
        begin, end = int(self.scan.begin[row]), int(self.scan.end[row])
        rows = np.arange(begin, end)
        other = None if near is None else self.scan.activations(near)[begin:end]
        document, tokens = self._strings(begin, end)
        return Text(rows, tokens, document, activation[begin:end], near, other)

    def _strings_of(self, begin: int, end: int) -> tuple[int, tuple[str, ...]]:
        document = int(self.scan.document[begin])
        first = int(self.scan.place[begin]) & ((1 << keys.POSITION_BITS) - 1)
        shown = self.store.vocabulary.display(self.store.tokens(document), first, first + end - begin)
        return document, tuple(shown)


def right_marks(activation: np.ndarray) -> np.ndarray:
    """The tokens that count as activating in fuzzing: those with 0.3 of the text's largest activation, bool [t]."""
    return (activation > 0) & (activation >= MARKED * activation.max())


def wrong_marks(activation: np.ndarray, draw: np.random.Generator) -> np.ndarray | None:
    """As many random tokens without activation as `right_marks` has, bool [t]; None where there are not enough."""
    silent, count = np.flatnonzero(activation <= 0), int(right_marks(activation).sum())
    if len(silent) < count:
        return None
    marks = np.zeros(len(activation), dtype=bool)
    marks[draw.choice(silent, count, replace=False)] = True
    return marks


def _in_bands(rows: np.ndarray, values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Firing tokens in random order, so that every stretch of BANDS has one of each fifth of the activations."""
    if not len(rows):
        return rows
    shuffled = draw.permutation(len(rows))
    band = np.searchsorted(np.quantile(values, np.linspace(0, 1, BANDS + 1)[1:-1]), values[shuffled])
    turn = np.empty(len(rows), np.int64)
    for number in range(BANDS):
        mine = band == number
        turn[mine] = np.arange(mine.sum())
    return rows[shuffled[np.lexsort((band, turn))]]
