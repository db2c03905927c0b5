"""Where an event stands, and its random key: a pure function of seed, document and position.

No random state is kept, so an event has the same key in every batch, order and process. Keys are also the hashes of
bottom-k sketches (Broder 1997, "On the resemblance and containment of documents").

    place = pack(document, position)
    uniform(order(place, seed=0))                 # u in (0, 1]
"""

from __future__ import annotations

import torch
from torch import Tensor

POSITION_BITS = 24  # a document has at most 10 million bytes (sae.data.rows.TEXT_LIMIT) and therefore fewer tokens
_POSITIONS = 1 << POSITION_BITS
_DOCUMENTS = 1 << 63 - POSITION_BITS


class FeatureError(ValueError):
    """Features cannot be collected or read as asked; the message names what was given, the cause and the remedy."""


def pack(document: Tensor, position: Tensor) -> Tensor:
    """Documents and positions in them, int64 [n] -> places, int64 [n], which sort by document, then position.

    Raises:
        FeatureError: a number that does not fit (39 bits of documents, 24 of positions).
    """
    if document.numel():
        for name, values, limit in (("document", document, _DOCUMENTS), ("position", position, _POSITIONS)):
            low, high = (int(v) for v in torch.aminmax(values))
            if low < 0 or high >= limit:
                raise FeatureError(f"{name}: expected 0 to {limit - 1}, got {low if low < 0 else high}")
    return (document << POSITION_BITS) | position


def document_of(place: Tensor) -> Tensor:
    return place >> POSITION_BITS


def position_of(place: Tensor) -> Tensor:
    return place & (_POSITIONS - 1)


def order(place: Tensor, seed: int) -> Tensor:
    """A random order of places, int64: a different number for every place, -2^63 to 2^63 - 1, all equally likely.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit numbers, on the place mixed with
    the seed; the sign bit is flipped so that signed comparison orders the unsigned hashes.
    """
    x = place ^ _signed(_splitmix(seed))
    # int64 products wrap like unsigned ones; >> copies the sign, and the copies are masked away
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (1 << 33) - 1) ^ _signed(1 << 63)


def uniform(order: Tensor) -> Tensor:
    """Numbers from `order` -> u in (0, 1], float64: the upper 53 bits, plus one, over 2^53."""
    return ((order >> 11) + ((1 << 52) + 1)).double() * 2.0**-53


def _splitmix(seed: int) -> int:
    """The first output of splitmix64 from `seed`: neighbouring seeds give unrelated numbers."""
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
