"""Words that are one token of a tokenizer, for the task of first letters."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

LEAST_LENGTH = 3
LETTERS = frozenset(string.ascii_lowercase)


def single_token_words(tokenizer: Any, count: int, seed: int) -> list[str]:
    """Lower-case words of a to z, three letters or more, whose encoding behind a space is one token.

    Args:
        tokenizer: of transformers.
        count: at most; drawn at random from all there are.
        seed: of the draw.
    """
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode([[i] for i in ids])
    words = sorted({text[1:] for text in texts if text[:1] == " " and _is_word(text[1:])})
    order = np.random.default_rng(seed).permutation(len(words))
    kept: list[str] = []
    for first in range(0, len(order), 1024):
        some = [words[i] for i in order[first : first + 1024]]
        encoded = tokenizer([f" {word}" for word in some], add_special_tokens=False)["input_ids"]
        kept += [word for word, ids_of in zip(some, encoded, strict=True) if len(ids_of) == 1]
        if len(kept) >= count:
            break
    return kept[:count]


def _is_word(text: str) -> bool:
    return len(text) >= LEAST_LENGTH and set(text) <= LETTERS
