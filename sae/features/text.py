"""Token ids as strings to show: a character split over several tokens stands whole at its first token.

display_tokens(tokenizer, ids)      # one string an id; "" where the character began at an earlier token
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"  # what a tokenizer gives for bytes that are no whole character
LONGEST = 6  # tokens that one character may be split over; UTF-8 has at most 4 bytes, a joined mark may add two


def display_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Strings of consecutive token ids, which joined give the text, one an id.

    White space before a word is kept (SentencePiece drops it at the beginning of what it decodes, so every token is
    decoded behind its predecessor). Special tokens are shown as they are written.
    """
    strings: list[str] = []
    place = 0
    while place < len(ids):
        text, size = _after(tokenizer, ids, place, 1), 1
        while text.endswith(BROKEN) and size < LONGEST and place + size < len(ids):
            longer = _after(tokenizer, ids, place, size + 1)
            text, size = longer, size + 1
        if text.endswith(BROKEN):
            # no whole character comes of it: the bytes stay apart
            text, size = _after(tokenizer, ids, place, 1), 1
        strings += [text] + [""] * (size - 1)
        place += size
    return strings


def _after(tokenizer: Any, ids: Sequence[int], place: int, size: int) -> str:
    """What `size` tokens from `place` on add to the text of the token before them."""
    before = list(ids[max(0, place - 1) : place])
    head, whole = _decode(tokenizer, before), _decode(tokenizer, [*before, *ids[place : place + size]])
    if head.endswith(BROKEN) or not whole.startswith(head):
        return _decode(tokenizer, list(ids[place : place + size]))
    return whole[len(head) :]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    if not ids:
        return ""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
