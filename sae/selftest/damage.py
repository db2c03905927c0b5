"""Ways in which a disk or a copy damages a file: `DAMAGES[name](content, draw, other)`."""

from __future__ import annotations

import random
from collections.abc import Callable

PAGE = 4096
HEADER = 256


def flip(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """One bit, anywhere."""
    return _flipped(content, draw.randrange(8 * len(content))) if content else content


def flip_in_header(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """One bit of the first 256 bytes."""
    return _flipped(content, draw.randrange(8 * min(HEADER, len(content)))) if content else content


def truncate(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Cut short at any length."""
    return content[: draw.randrange(max(1, len(content)))]


def empty(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Nothing left."""
    return b""


def zero_page(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """One page of 4,096 bytes set to zero."""
    begin = draw.randrange(max(1, -(-len(content) // PAGE))) * PAGE
    end = min(begin + PAGE, len(content))
    return content[:begin] + bytes(end - begin) + content[end:]


def append(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Up to 64 random bytes more."""
    return content + draw.randbytes(draw.randrange(1, 65))


def swap(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """The same file of another run."""
    return other


DAMAGES: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    "flip": flip,
    "flip in header": flip_in_header,
    "truncate": truncate,
    "empty": empty,
    "zero page": zero_page,
    "append": append,
    "swap": swap,
}
"""Name -> function of a file's content, a draw, and the content of the same file of another run."""


def _flipped(content: bytes, bit: int) -> bytes:
    data = bytearray(content)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)
