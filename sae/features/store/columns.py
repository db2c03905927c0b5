"""The scalar columns by which a table of latents is sorted and filtered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sae.features.store import keys
from sae.features.store.buffers import Events
from sae.features.store.collection import Collection
from sae.features.store.documents import UNKNOWN, DocumentTokens
from sae.features.store.statistics import SUM_DIGITS, read_sum
from sae.features.store.text import Vocabulary

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
