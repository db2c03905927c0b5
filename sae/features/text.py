"""Tokens as people read them: the bytes of every token, and the strings of a run of tokens.

A tokenizer that works on bytes may split a character over several tokens. Such a character is shown whole at the first
of them and as "" at the others; bytes that make up no character are shown as U+FFFD.

    vocabulary = Vocabulary.of(tokenizer)
    vocabulary.display([4, 17, 9])                  # three strings
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae.features.documents import UNKNOWN

GAP = "…"
"""Shown for a token that is not known."""
BEFORE = 3
"""Tokens before a run that can hold the beginning of a character that ends in it: a character has four bytes."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """The bytes of every token id."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self._alone: list[str | None] = [_text(part) for part in parts]

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read from a tokenizer of transformers."""
        return cls(_bytes_of(tokenizer))

    @classmethod
    def unpack(cls, data: bytes) -> Vocabulary:
        """What `pack` gave."""
        count = int.from_bytes(data[:8], "little")
        lengths = np.frombuffer(data, "<u4", count, 8)
        ends = lengths.cumsum(dtype=np.int64) + 8 + 4 * count
        return cls([data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)])

    def pack(self) -> bytes:
        """As bytes, to be stored."""
        lengths = np.array([len(part) for part in self.parts], "<u4")
        return len(self.parts).to_bytes(8, "little") + lengths.tobytes() + b"".join(self.parts)

    def display(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """One string for every token; together they are the text."""
        strings: list[str] = []
        run: list[bytes] = []  # tokens that are no text on their own
        for token in np.asarray(ids).tolist():
            alone = self._shown(token)
            if alone is None:
                run.append(self.parts[token])
                continue
            if run:
                strings += _merged(run)
                run = []
            strings.append(alone)
        return strings + _merged(run) if run else strings

    def name(self, token: int) -> str:
        """A token on its own, the bytes of a split character spelt out: `\\xe2\\x80`."""
        alone = self._shown(token)
        return alone if alone is not None else "".join(f"\\x{byte:02x}" for byte in self.parts[token])

    def _shown(self, token: int) -> str | None:
        if token == UNKNOWN:
            return GAP
        return self._alone[token] if 0 <= token < len(self._alone) else f"<{token}>"


def _text(part: bytes) -> str | None:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


def _merged(run: list[bytes]) -> list[str]:
    """Strings of tokens whose bytes are text only together: each character at the token that holds its first byte."""
    owners = [index for index, part in enumerate(run) for _ in part]
    strings, byte = [""] * len(run), 0
    for character in b"".join(run).decode(errors="surrogateescape"):
        lost = 0xDC80 <= ord(character) <= 0xDCFF
        strings[owners[byte]] += "\ufffd" if lost else character
        byte += 1 if lost else len(character.encode())
    return strings


def _bytes_of(tokenizer: Any) -> list[bytes]:
    """The bytes of every id of a tokenizer, by the way its decoder works."""
    size = len(tokenizer)
    added = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    kinds = _decoder_kinds(tokenizer)
    letters = _letters_of_bytes()
    parts = []
    for index, piece in enumerate(pieces):
        if index in added or piece is None:
            parts.append(added.get(index, "").encode())
        elif "ByteLevel" in kinds:
            parts.append(b"".join([letters[letter] if letter in letters else letter.encode() for letter in piece]))
        elif match := _BYTE_TOKEN.fullmatch(piece):
            parts.append(bytes([int(match[1], 16)]))
        elif "WordPiece" in kinds:
            parts.append((piece[2:] if piece.startswith("##") else f" {piece}").encode())
        else:
            parts.append(piece.replace("▁", " ").encode())
    return parts


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Types of the decoder's parts; none for a tokenizer that is not a fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = (json.loads(backend.to_str()).get("decoder") if backend else None) or {}
    return {part.get("type", "") for part in (decoder, *decoder.get("decoders", ()))}


def _letters_of_bytes() -> dict[str, bytes]:
    """Byte-level vocabularies write each byte as one printable letter: itself where it is one, else U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): bytes([b]) for b in printable} | {chr(0x100 + i): bytes([b]) for i, b in enumerate(others)}
