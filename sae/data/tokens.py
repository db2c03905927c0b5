"""Documents to token ids: many tokenized at a time, long ones in pieces, with each token's role in a conversation.

for piece in tokenize(documents.iterate(), tokenizer):
    piece.document, piece.offset, piece.tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sae.data.columns import DataError
from sae.data.documents import Document

# characters tokenized in one call; a longer document is tokenized in pieces, so that memory stays bounded
PIECE = 1 << 18


class Tokenized(NamedTuple):
    """A document, or a piece of a long one."""

    document: int
    offset: int
    """Tokens of the document before this piece."""
    tokens: np.ndarray
    """[T] int64."""
    role: np.ndarray | None = None
    """[T] int64: index into `roles`, -1 for none; None where roles are not known."""
    roles: tuple[str, ...] = ()

    def after(self, count: int) -> Tokenized:
        """What follows the first `count` tokens."""
        role = None if self.role is None else self.role[count:]
        return Tokenized(self.document, self.offset + count, self.tokens[count:], role, self.roles)


def tokenize(documents: Iterator[Document], tokenizer: Any) -> Iterator[Tokenized]:
    """Yield the tokens of every document, and the roles of a conversation's, tokenizing `PIECE` characters in a call.

    No special tokens are added; documents that are token ids are passed through. A document over `PIECE` characters is
    cut into pieces before white space. How documents are grouped into calls does not influence their tokens.

    Raises:
        DataError: while iterating, a conversation has roles and the tokenizer does not give the offsets of tokens.
    """
    group: list[tuple[Document, str, int]] = []
    size = 0
    last = Tokenized(-1, 0, np.empty(0, np.int64))

    def flush() -> Iterator[Tokenized]:
        nonlocal last
        texts = [text for _, text, _ in group]
        with_roles = any(document.spans for document, _, _ in group)
        if with_roles and not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{type(tokenizer).__name__}: does not tell where in the text a token stands, so its role is not "
                "known; choose a model with a fast tokenizer (tokenizer.json)"
            )
        # verbose=False: a text longer than the model reads needs no warning, since it is cut into contexts
        offsets = {"return_offsets_mapping": True} if with_roles else {}
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False, **offsets) if group else {"input_ids": []}
        for number, ((document, _, begin), tokens) in enumerate(zip(group, encoded["input_ids"], strict=True)):
            offset = last.offset + len(last.tokens) if document.index == last.document else 0
            role, names = None, ()
            if document.spans:
                role, names = _roles_of(document, begin, encoded["offset_mapping"][number])
            last = Tokenized(document.index, offset, np.asarray(tokens, dtype=np.int64), role, names)
            yield last
        group.clear()

    for document in documents:
        if document.ids is not None:
            yield from flush()
            size, last = 0, Tokenized(document.index, 0, document.ids)
            yield last
            continue
        begin = 0
        for piece in _pieces(document.text):
            if group and size + len(piece) > PIECE:
                yield from flush()
                size = 0
            group.append((document, piece, begin))
            size += len(piece)
            begin += len(piece)
    yield from flush()


def _roles_of(document: Document, begin: int, offsets: list[tuple[int, int]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Roles of the tokens of a piece that begins at character `begin`; a token has its last character's role."""
    names = tuple(dict.fromkeys(span.role for span in document.spans if span.role))
    numbers = np.array([names.index(span.role) if span.role else -1 for span in document.spans], dtype=np.int64)
    ends = [span.end for span in document.spans]
    # a token's offset may leave out the white space before it, but its end is reliable
    last = begin + np.array([max(end - 1, 0) for _, end in offsets], dtype=np.int64)
    return numbers[np.searchsorted(ends, last, side="right").clip(max=len(ends) - 1)], names


def without_first(pieces: Iterator[Tokenized], beginning: tuple[int, ...]) -> Iterator[Tokenized]:
    """Remove `beginning` from documents that already begin with it, since it is put before every segment."""
    doubled = 0
    for piece in pieces:
        if piece.offset == 0:
            doubled = len(beginning) if tuple(piece.tokens[: len(beginning)].tolist()) == beginning else 0
            yield piece.after(doubled)._replace(offset=0)
        else:
            yield piece._replace(offset=piece.offset - doubled)


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > PIECE:
        end = begin + PIECE
        # tokenizers join white space to the word after it; where there is none nearby, cut anywhere
        cut = next((i for i in range(end, end - 1000, -1) if text[i].isspace() and not text[i - 1].isspace()), end)
        yield text[begin:cut]
        begin = cut
    yield text[begin:]
