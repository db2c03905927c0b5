"""Tokens as strings to be read; a sequence's strings joined are what the tokenizer decodes.

The decoder of the `tokenizers` library makes the text from the vocabulary's pieces, whatever kind of decoder it is:
`"".join(vocabulary.display(ids))` is `tokenizer.decode(ids)` with special tokens kept and spaces not cleaned up. So the
first token may lack the space that it has inside a text, and the last one the space after a word. A character that is
split over several tokens is shown whole at the first of them and as "" at the others; bytes that make up no character
are shown as U+FFFD, as by the decoder.

    vocabulary = Vocabulary.of(tokenizer)
    vocabulary.display([4, 17, 9])                  # three strings
    vocabulary.display(document, 100, 164)          # 64 strings, as they stand in the whole document

Exceptions. An id unknown to the tokenizer, which it decodes as nothing, is shown as `<id>`. Tokenizers written in
Python have no decoder of the library; `_of_python` looks for one that does the same.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from sae.base.files import parse_json
from sae.features.store.documents import UNKNOWN

GAP = "…"
"""Shown for an unknown token."""
LOST = "\ufffd"
_BEFORE, _AFTER = "\ue000", "\ue001"  # characters for private use, which no vocabulary contains
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_PACKED = b'{"decoder":'
_SAMPLES, _SAMPLE_TOKENS = 32, 12


class Vocabulary:
    """The pieces of all token ids, and the decoder that turns them into text."""

    def __init__(self, pieces: Sequence[str | None], decoder: dict[str, Any] | None) -> None:
        """
        Args:
            pieces: the vocabulary's entry of every token id, None where an id has none.
            decoder: as the `tokenizers` library writes it in tokenizer.json; None puts a space between tokens.
        """
        self.pieces, self.decoder = list(pieces), decoder
        self._library = _library_decoder(decoder)
        self._texts: dict[int, str | None] = {}
        self._begin = self._library([_BEFORE])
        self._end = self._library([_BEFORE, _AFTER])[len(self._begin) :]

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read from a tokenizer of transformers."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return cls(*_of_python(tokenizer))
        pieces: list[str | None] = [None] * (max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1)
        pieces = [backend.id_to_token(i) for i in range(len(pieces))]
        decoder = backend.decoder
        return cls(pieces, None if decoder is None else json.loads(decoder.__getstate__()))

    @classmethod
    def of_bytes(cls, parts: Sequence[bytes]) -> Vocabulary:
        """A vocabulary in which token i is the bytes parts[i]."""
        return cls([_piece_of(part) for part in parts], _BYTE_LEVEL)

    @classmethod
    def unpack(cls, data: bytes) -> Vocabulary:
        """From `pack`, or from an older version's format with the bytes of every token."""
        if data.startswith(_PACKED):
            packed = parse_json(data)
            if not all(isinstance(piece, (str, type(None))) for piece in packed["pieces"]):
                raise ValueError("a vocabulary's pieces are text or null")
            return cls(packed["pieces"], packed["decoder"])
        count = int.from_bytes(data[:8], "little")
        lengths = np.frombuffer(data, "<u4", count, 8)
        ends = lengths.cumsum(dtype=np.int64) + 8 + 4 * count
        return cls.of_bytes([data[e - length : e] for e, length in zip(ends.tolist(), lengths.tolist(), strict=True)])

    def pack(self) -> bytes:
        packed = {"decoder": self.decoder, "pieces": self.pieces}
        return json.dumps(packed, ensure_ascii=False, separators=(",", ":")).encode()

    def __len__(self) -> int:
        return len(self.pieces)

    def display(self, ids: Sequence[int] | np.ndarray, start: int = 0, end: int | None = None) -> list[str]:
        """One string for every token from `start` to `end`, as it reads in the text of all `ids`.

        Only the surroundings of that part are decoded, up to a token on either side that is text by itself and not
        blank: a decoder may strip several spaces from the ends of what it is given.
        """
        tokens = np.asarray(ids).tolist()
        end = len(tokens) if end is None else end
        first, last = start, end
        while first and (first == start or not self._bounds(tokens[first])):
            first -= 1
        while last < len(tokens) and (last == end or not self._bounds(tokens[last - 1])):
            last += 1
        return self._strings(tokens[first:last])[start - first : end - first]

    def _bounds(self, token: int) -> bool:
        """Whether what is decoded may begin or end with the token."""
        return bool((self._text(token) or "").strip())

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """The strings of `display`, joined."""
        return self._decode([self._piece(token) for token in np.asarray(ids).tolist()])

    def name(self, token: int) -> str:
        """A token as it reads inside a text; parts of a split character as bytes: `\\xe2\\x80`."""
        text, piece = self._text(token), self._piece(token)
        if text is not None:
            return text or piece
        if match := _BYTE_PIECE.fullmatch(piece):
            return f"\\x{match[1].lower()}"
        return "".join(f"\\x{byte:02x}" for byte in _bytes_of(piece)) if set(piece) <= _BYTES.keys() else piece

    def _piece(self, token: int) -> str:
        if token == UNKNOWN:
            return GAP
        piece = self.pieces[token] if 0 <= token < len(self.pieces) else None
        return f"<{token}>" if piece is None else piece

    def _text(self, token: int) -> str | None:
        """A token's text between two others; None where it depends on them, as for a part of a character."""
        if token not in self._texts:
            self._texts[token] = self._framed(self._piece(token), [_BEFORE], self._begin)
        return self._texts[token]

    def _framed(self, piece: str, before: list[str], begin: str) -> str | None:
        whole = self._library([*before, piece, _AFTER])
        text = whole[len(begin) : len(whole) - len(self._end)]
        lost = LOST in text and LOST not in piece
        return text if whole == begin + text + self._end and not lost else None

    def _decode(self, pieces: list[str], inside: bool = False) -> str:
        """The text of pieces, by themselves or inside a text."""
        return self._library([_BEFORE, *pieces])[len(self._begin) :] if inside else self._library(pieces)

    def _strings(self, tokens: list[int]) -> list[str]:
        """The text of `tokens`, cut into one string for each of them.

        Where the text continues with the token's usual string, that is its string. Elsewhere the tokens from the last
        plain one to this one are decoded, or all up to this one: the part that agrees with the text is theirs, and
        signs of lost bytes after it belong to a character that has only begun.
        """
        pieces = [self._piece(token) for token in tokens]
        whole = self._decode(pieces)
        strings: list[str] = []
        at = 0  # characters of the text that have been given to tokens
        asked: tuple[int, int] | None = None  # the first token to decode, and where its text begins
        owner: int | None = None  # the token with the first byte of a character that has only begun
        for place, token in enumerate(tokens):
            text = self._text(token) if place else self._framed(pieces[0], [], "")
            if owner is None and text is not None and whole.startswith(text, at):
                strings.append(text)
                at, asked = at + len(text), None
                continue
            first, base = asked = asked or (place, at)
            text = self._decode(pieces[first : place + 1], first > 0)
            agreed = _agreed(text, whole, base)
            if text[agreed:].strip(LOST):
                asked, owner = (0, 0), None
                text = self._decode(pieces[: place + 1])
                base, agreed = 0, _agreed(text, whole, 0)
            new = whole[at : max(at, base + agreed)]
            at += len(new)
            if new and owner is not None:
                strings[owner] += new[0]
                new, owner = new[1:], None
            strings.append(new)
            if agreed == len(text):
                asked = None
            elif owner is None and not text[agreed:].strip(LOST):
                owner = place
        if strings:
            strings[-1] += whole[at:]
        return strings


def _agreed(text: str, whole: str, at: int) -> int:
    """How many characters `text` has in common with `whole` from `at` on."""
    pairs = zip(text, whole[at : at + len(text)], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _library_decoder(decoder: dict[str, Any] | None) -> Callable[[list[str]], str]:
    if decoder is None:
        return " ".join
    from tokenizers import Tokenizer, models

    backend = json.loads(Tokenizer(models.BPE()).to_str())
    return Tokenizer.from_str(json.dumps({**backend, "decoder": decoder})).decoder.decode


def _letters_of_bytes() -> list[str]:
    """Byte-level vocabularies write each byte as one printable letter: itself if printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256)]


_LETTERS = _letters_of_bytes()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def _piece_of(part: bytes) -> str:
    return "".join([_LETTERS[byte] for byte in part])


def _bytes_of(piece: str) -> bytes:
    return bytes(_BYTES[letter] for letter in piece)


# Decoders of the library that do what tokenizers written in Python do.
_OF_PYTHON: list[dict[str, Any] | None] = [
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "WordPiece", "prefix": "##", "cleanup": False},
    {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    {
        "type": "Sequence",
        "decoders": [
            {"type": "WordPiece", "prefix": _AFTER, "cleanup": False},
            {"type": "Fuse"},
            {"type": "Replace", "pattern": {"String": "@@ "}, "content": ""},
        ],
    },
    {"type": "Fuse"},
    None,
]


def _of_python(tokenizer: Any) -> tuple[list[str | None], dict[str, Any] | None]:
    """Pieces and decoder of a tokenizer written in Python.

    The decoder is the first of `_OF_PYTHON` that decodes random tokens as the tokenizer does, but for spaces at the
    ends, which such tokenizers strip. Where none does (some detokenize by rules over words), each token is shown as the
    tokenizer decodes it alone.
    """
    pieces = [_SURROGATE.sub(LOST, piece) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    added = set(tokenizer.added_tokens_decoder)
    if hasattr(tokenizer, "byte_decoder"):
        return list(pieces), _BYTE_LEVEL
    if {piece for i, piece in enumerate(pieces) if i not in added} == {chr(byte) for byte in range(256)}:
        # every piece is a byte, as in ByT5
        whole = [piece if i in added else _piece_of(piece.encode("latin-1")) for i, piece in enumerate(pieces)]
        return list(whole), _BYTE_LEVEL

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    draw = random.Random(0)
    samples = [draw.choices(range(len(pieces)), k=_SAMPLE_TOKENS) for _ in range(_SAMPLES)]
    texts = [decoded(ids).strip() for ids in samples]
    for decoder in _OF_PYTHON:
        decode = _library_decoder(decoder)
        if texts == [decode([pieces[i] for i in ids]).strip() for ids in samples]:
            return list(pieces), decoder
    return [_piece_of(decoded([i]).encode()) for i in range(len(pieces))], _BYTE_LEVEL
