"""Examples from which names are made and on which they are scored: where a latent fires, and where it is silent.

    pool = Pool(store)
    pool.examples(17).fit, pool.examples(17).test         # of disjoint documents

They come from the store alone, and silence is known, not assumed. A latent's uniform buffer has the firings with the
lowest random keys: below the highest of them, a token of the corpus is in the buffer or the latent is silent there
(bottom-k sketches, Broder 1997). Tokens at which other latents fire come from those latents' uniform buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from sae.features.explain.explainers import Marked
from sae.features.explain.induction import Background, LabelledTokens
from sae.features.explain.predicates import DocumentText, Terms, gather
from sae.features.store import keys, windows
from sae.features.store.buffers import EMPTY, SLOTS
from sae.features.store.store import FeatureStore

HELD_OUT = 0.4  # share of documents that names are scored on
BANDS = 5  # quantiles of the activation with equally many scored examples
A_BAND = 8  # scored examples of each quantile
FIT_POSITIVES, FIT_NEGATIVES = 72, 72
TEST_NEGATIVES = 40  # random tokens, and equally many of neighbours
NEIGHBOURS = 6  # nearest atoms, and equally many latents that fire at the same tokens
LEAST = 5  # scored examples that fire, and that are silent, below which a name gets no score
A_DOCUMENT = 3  # examples from one document for a name
BACKGROUND_TOKENS = 4096


class Examples(NamedTuple):
    """A latent's examples: those to learn from and those to score on are from different documents."""

    fit: LabelledTokens
    test: LabelledTokens
    neighbour: np.ndarray
    """bool [n], of `test`: silent where a neighbour fires; the other silent examples are random tokens."""

    @property
    def enough(self) -> bool:
        """Whether there are enough examples to score on."""
        fires = int(self.test.positive.sum())
        return min(fires, len(self.test.positive) - fires) >= LEAST


class Pool:
    """Examples of all latents of a store, and the descriptions of their tokens.

    Args:
        store: collected features.
        nearest: int64 [F, n], the latents of the nearest atoms.
        groups: token id -> the group that it belongs to, see `naming`.
    """

    def __init__(self, store: FeatureStore, nearest: np.ndarray, groups: Mapping[int, str] | None = None) -> None:
        self.store, self.nearest = store, nearest
        self.seed = int(store.info["seed"])
        self.terms = Terms()
        self.groups = groups or {}
        self.place = np.full((store.width, SLOTS["uniform"]), EMPTY, np.int64)
        for latent in range(store.width):
            places = store.raw(latent).events["uniform"][0]
            self.place[latent, : len(places)] = places
        self.order = self._order(self.place)
        full = (self.place != EMPTY).all(1)
        self.known = np.where(full, self.order.max(1), np.iinfo(np.int64).max)
        """Key up to which all of a latent's firings are in its buffer, int64 [F]."""
        self._index()
        self.facts = lru_cache(maxsize=60_000)(self._facts_of)
        """Numbers of all statements about the token at a place, int32."""
        self._text = lru_cache(maxsize=8_192)(self._text_of)
        self.background = self._background()

    def examples(self, latent: int) -> Examples:
        """Examples from which to make a latent's name, and held-out ones to score it; there may be none of a kind."""
        place, value = self._fired(latent)
        near, far = self._silent(latent, place)
        heldout, near_heldout, far_heldout = (self.held_out(places) for places in (place, near, far))
        others = [near[near_heldout][:TEST_NEGATIVES], far[far_heldout][:TEST_NEGATIVES]]
        scored = _strata(value[heldout], self.store.raw(latent).events["uniform"][1])
        test = self._labelled(place[heldout][scored], value[heldout][scored], np.concatenate(others))
        neighbour = np.zeros(len(test.positive), dtype=bool)
        neighbour[len(scored) : len(scored) + len(others[0])] = True
        silent = np.concatenate([near[~near_heldout][:FIT_NEGATIVES], far[~far_heldout][:FIT_NEGATIVES]])
        return Examples(self._labelled(*_spread(place[~heldout], value[~heldout]), silent), test, neighbour)

    def marked(self, latent: int, place: int) -> Marked:
        """The text around a token, in which the tokens are marked at which the latent is known to fire."""
        document, position = (int(part(torch.tensor(place))) for part in (keys.document_of, keys.position_of))
        ids = self.store.tokens(document)
        start, end = max(0, position - windows.BACK), min(len(ids), position + windows.AHEAD + 1)
        marks = np.zeros(end - start, dtype=bool)
        for places, values, window in self.store.raw(latent).events.values():
            for index in np.flatnonzero(places == place)[:1]:
                around = torch.from_numpy(window[index : index + 1].copy())
                fires = windows.decode(around, torch.tensor(values[index : index + 1]))[0].numpy() > 0
                first = start - position + windows.BACK
                marks |= fires[first : first + end - start]
        return Marked(self.store.vocabulary.display(ids, start, end), marks.tolist())

    def _fired(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """All kept examples of a latent, by random key: places and values."""
        events = self.store.raw(latent).events.values()
        place, first = np.unique(np.concatenate([places for places, _, _ in events]), return_index=True)
        value = np.concatenate([values for _, values, _ in events])[first].astype(np.float64)
        by = np.argsort(self._order(place))
        return place[by], value[by]

    def _silent(self, latent: int, fired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens at which the latent is known to be silent, by random key: where neighbours fire, and random ones."""
        near = self.place[self.neighbours(latent)].ravel()
        near = np.unique(near[near != EMPTY])
        near_order = self._order(near)
        near = near[np.argsort(near_order)]
        silent = []
        for places in (near, self.random):
            known = self._order(places) <= self.known[latent]
            silent.append(places[known & ~np.isin(places, fired)])
        # a token is in one list only
        return silent[0], silent[1][~np.isin(silent[1], silent[0])]

    def neighbours(self, latent: int) -> np.ndarray:
        """Latents of the nearest atoms and those that fire at the same tokens."""
        mine = self.place[latent]
        mine = mine[mine != EMPTY]
        begin, end = np.searchsorted(self._sorted, mine), np.searchsorted(self._sorted, mine, side="right")
        together = np.concatenate([self._owner[a:b] for a, b in zip(begin, end, strict=True)])
        others, counts = np.unique(together[together != latent], return_counts=True)
        often = others[np.argsort(-counts, kind="stable")[:NEIGHBOURS]]
        return np.unique(np.concatenate([self.nearest[latent][:NEIGHBOURS], often]))

    def _index(self) -> None:
        """The latents of every place, and the random tokens: those with the lowest keys of all."""
        places, owner = self.place.ravel(), np.repeat(np.arange(len(self.place)), self.place.shape[1])
        by = np.argsort(places, kind="stable")
        by = by[places[by] != EMPTY]
        self._sorted, self._owner = places[by], owner[by]
        unique = np.unique(self._sorted)
        self.random = unique[np.argsort(self._order(unique))][:BACKGROUND_TOKENS]

    def _background(self) -> Background:
        learnt = self.random[~self.held_out(self.random)]
        items = np.concatenate([*(self.facts(int(place)) for place in learnt), np.empty(0, np.int32)])
        return Background(np.bincount(items, minlength=len(self.terms)).astype(np.float64), len(learnt))

    def _labelled(self, place: np.ndarray, value: np.ndarray, silent: np.ndarray) -> LabelledTokens:
        places = np.concatenate([place, silent])
        facts = gather([self.facts(int(p)) for p in places], self.terms)
        positive = np.arange(len(places)) < len(place)
        weight = np.ones(len(places))
        if len(place):
            weight[: len(place)] = np.clip(value / value.mean(), 0.1, 4)
        return LabelledTokens(facts, positive, weight, places, keys.document_of(torch.from_numpy(places)).numpy())

    def _facts_of(self, place: int) -> np.ndarray:
        """Numbers of all statements about a token, int32."""
        document, position = (int(f(torch.tensor(place))) for f in (keys.document_of, keys.position_of))
        text, topic = self._text(document)
        group = self.groups.get(int(self.store.tokens(document)[position]))
        said = self.terms.add("like", () if group is None else (group,))
        described = text.describe(position)
        said += [n for family, values in described.items() for n in self.terms.add(family, values)]
        word = self.terms.add("topic", described.get("word", ()))
        # that the document contains the token's own word says nothing
        return np.concatenate([np.array(said, np.int32), topic[~np.isin(topic, word)]])

    def _text_of(self, document: int) -> tuple[DocumentText, np.ndarray]:
        text = DocumentText(self.store.document(document)["tokens"])
        return text, np.array(self.terms.add("topic", text.topic), np.int32)

    def _order(self, place: np.ndarray) -> np.ndarray:
        return keys.order(torch.from_numpy(np.ascontiguousarray(place)), self.seed).numpy()

    def held_out(self, place: np.ndarray) -> np.ndarray:
        """Whether each place is in a document on which names are scored, bool."""
        document = keys.document_of(torch.from_numpy(place))
        drawn = keys.uniform(keys.order(keys.pack(document, torch.zeros_like(document)), self.seed + 1))
        return drawn.numpy() <= HELD_OUT


def _spread(place: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples to learn from: the strongest few of each document; places and values."""
    document = keys.document_of(torch.from_numpy(place)).numpy()
    by = np.lexsort((-value, document))
    starts = np.concatenate([[True], document[by][1:] != document[by][:-1]])
    number = np.arange(len(by)) - np.maximum.accumulate(np.where(starts, np.arange(len(by)), 0))
    kept = np.sort(by[number < A_DOCUMENT])[:FIT_POSITIVES]
    return place[kept], value[kept]


def _strata(value: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Which held-out examples are scored: equally many of each quantile of the activation, by random key; indices."""
    edges = np.quantile(uniform, np.linspace(0, 1, BANDS + 1)[1:-1])
    band = np.searchsorted(edges, value)
    kept = [np.flatnonzero(band == b)[:A_BAND] for b in range(BANDS)]
    return np.sort(np.concatenate(kept))
