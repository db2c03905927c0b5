"""Documents to contexts: tokenization in the background, and packing that can start anywhere.

    for contexts in pack(open_documents("demo"), tokenizer, context=256, batch=16, beginning=(1,)):
        contexts.tokens, contexts.next

A **segment** is a document, or the part of one that fits into a context. Every segment begins with the same tokens
(BOS, mostly; maybe none) and at position 0, and `isolation` keeps attention inside it.

Letters: B contexts in a batch, S tokens in a context.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sae.data.documents import Document
from sae.data.prefetch import prefetch
from sae.data.rows import DataError

# characters tokenized in one call; a longer document is tokenized in pieces, so that memory stays bounded
PIECE = 1 << 18
# batches of contexts and groups of texts prepared ahead
AHEAD = 4


class Cursor(NamedTuple):
    """Where a context begins."""

    document: int = 0
    """Index of the first document to read."""
    token: int = 0
    """Tokens of that document that earlier contexts hold (BOS not counted)."""


BEGINNING = Cursor()


class Contexts(NamedTuple):
    """One batch of packed tokens."""

    tokens: Tensor
    """[B, S] int64."""
    document: Tensor
    """[B, S] int64: index of the token's document; -1 for padding."""
    position: Tensor
    """[B, S] int64: position inside the segment, from 0; padding counts from 0 as well."""
    next: Cursor
    """Where the following batch begins."""


class Source(Protocol):
    """What `pack` reads: `Documents`, or anything that iterates from an index."""

    def iterate(self, start: int = 0) -> Iterator[Document]: ...


class Tokenized(NamedTuple):
    """A document, or a piece of a long one."""

    document: int
    offset: int
    """Tokens of the document before this piece."""
    tokens: np.ndarray
    """[T] int64."""


def pack(
    documents: Source,
    tokenizer: Any,
    *,
    context: int,
    batch: int,
    beginning: tuple[int, ...] | None = None,
    start: Cursor = BEGINNING,
    isolate: Literal["pack", "pad"] = "pack",
) -> Iterator[Contexts]:
    """Yield batches of contexts; tokenization and packing run in a background thread.

    Every token of every document from `start` on appears once and in order. Continuing from any batch's `next` gives
    the batches that would have followed, exactly.

    Args:
        documents: in a fixed order, so that a cursor means the same each time.
        tokenizer: of transformers; copied, since a fast tokenizer may not be used by two threads at once.
        context: S, tokens in a context, padding and BOS included.
        batch: B; the last batch may be smaller.
        beginning: ids that begin every segment, `named_ids` by default. A text that begins with them has them once.
        start: where to begin.
        isolate: "pack" fills contexts with one segment after another; "pad" gives each segment a row of its own,
            padded on the right, for models whose attention cannot be cut (`choose_isolation` tells).

    Raises:
        ValueError: a size out of range, or an unknown `isolate`.
        DataError: while iterating, where `start` lies beyond its document, so the data are not those it came from.
    """
    if isolate not in ("pack", "pad"):
        raise ValueError(f"isolate: {isolate!r} is neither 'pack' nor 'pad'")
    first = named_ids(tokenizer) if beginning is None else beginning
    least = len(first) + 1
    if context < least or batch < 1:
        raise ValueError(f"context, batch: {context}, {batch}; at least {least} tokens and 1 context are needed")
    layout = _Layout(context, batch, first, padding_token(tokenizer), alone=isolate == "pad")
    pieces = _without(first, tokenize(documents.iterate(start.document), copy.deepcopy(tokenizer)))
    return prefetch(_assemble(_skip(pieces, start), layout), AHEAD)


def named_ids(tokenizer: Any) -> tuple[int, ...]:
    """BOS, else CLS, else nothing, as the tokenizer names them."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        if token is not None:
            return (token,)
    return ()


def padding_token(tokenizer: Any) -> int:
    """Id that fills rows: the padding token, else the end of text, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def tokenize(documents: Iterator[Document], tokenizer: Any) -> Iterator[Tokenized]:
    """Yield every document's tokens, without special ones, tokenizing about `PIECE` characters in a call.

    A document over `PIECE` characters comes in pieces, cut before white space. How documents are grouped into calls
    has no influence on their tokens.
    """
    group: list[tuple[int, str]] = []
    size = 0
    last = Tokenized(-1, 0, np.empty(0, np.int64))

    def flush() -> Iterator[Tokenized]:
        nonlocal last
        # verbose: a text over the model's length is no fault here, since it is cut into contexts
        lists = tokenizer([text for _, text in group], add_special_tokens=False, verbose=False)["input_ids"]
        for (index, _), tokens in zip(group, lists, strict=True):
            offset = last.offset + len(last.tokens) if index == last.document else 0
            last = Tokenized(index, offset, np.asarray(tokens, dtype=np.int64))
            yield last
        group.clear()

    for document in documents:
        for piece in _pieces(document.text):
            if group and size + len(piece) > PIECE:
                yield from flush()
                size = 0
            group.append((document.index, piece))
            size += len(piece)
    if group:
        yield from flush()


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > PIECE:
        end = begin + PIECE
        # tokenizers take white space with the word after it; far from any, cut anywhere
        cut = next((i for i in range(end, end - 1000, -1) if text[i].isspace() and not text[i - 1].isspace()), end)
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _without(beginning: tuple[int, ...], pieces: Iterator[Tokenized]) -> Iterator[Tokenized]:
    """Take `beginning` off the documents whose text begins with it: it is put before every segment."""
    lead, shortened = len(beginning), -1
    for piece in pieces:
        if lead and piece.offset == 0 and tuple(piece.tokens[:lead].tolist()) == beginning:
            shortened = piece.document
            yield piece._replace(tokens=piece.tokens[lead:])
        else:
            yield piece._replace(offset=piece.offset - lead) if piece.document == shortened else piece


def _skip(pieces: Iterator[Tokenized], start: Cursor) -> Iterator[Tokenized]:
    """Leave out the first `start.token` tokens of document `start.document`."""
    reached = start.token == 0
    for piece in pieces:
        if not reached and piece.document == start.document:
            done = max(0, start.token - piece.offset)
            if done < len(piece.tokens):
                reached = True
                yield Tokenized(piece.document, piece.offset + done, piece.tokens[done:])
            continue
        if not reached:
            break
        yield piece
    if not reached:
        raise DataError(
            f"document {start.document} has no token {start.token}: the data set or tokenizer is not the one "
            "that the run began with"
        )


class _Layout(NamedTuple):
    """How contexts are laid out; see `pack`."""

    context: int
    batch: int
    first: tuple[int, ...]
    padding: int
    alone: bool


class _Sheet:
    """A batch being filled."""

    def __init__(self, layout: _Layout) -> None:
        shape = (layout.batch, layout.context)
        self.layout = layout
        self.tokens = np.full(shape, layout.padding, np.int64)
        self.document = np.full(shape, -1, np.int64)
        self.position = np.zeros(shape, np.int64)
        self.row = self.column = 0

    @property
    def lead(self) -> int:
        """Tokens that a segment needs before its text."""
        return len(self.layout.first)

    def ends_with(self, document: int) -> bool:
        return self.column > 0 and self.document[self.row, self.column - 1] == document

    def put(self, document: int, tokens: np.ndarray, continued: bool) -> int:
        """Write what fits of `tokens` into the current row, return how many fitted.

        `continued`: the row's last segment goes on, so neither BOS nor a new position 0.
        """
        first = () if continued else self.layout.first
        lead = len(first)
        taken = min(len(tokens), self.layout.context - self.column - lead)
        begin, end = self.column, self.column + lead + taken
        self.tokens[self.row, begin : begin + lead] = first
        self.tokens[self.row, begin + lead : end] = tokens[:taken]
        self.document[self.row, begin:end] = document
        from_position = self.position[self.row, begin - 1] + 1 if continued else 0
        self.position[self.row, begin:end] = np.arange(from_position, from_position + end - begin)
        self.column = end
        return taken

    def end_row(self) -> None:
        rest = self.layout.context - self.column
        self.position[self.row, self.column :] = np.arange(rest)
        self.row, self.column = self.row + 1, 0

    def contexts(self, cursor: Cursor) -> Contexts:
        arrays = (self.tokens, self.document, self.position)
        return Contexts(*(torch.from_numpy(array[: self.row]) for array in arrays), next=cursor)


def _assemble(pieces: Iterator[Tokenized], layout: _Layout) -> Iterator[Contexts]:
    sheet = _Sheet(layout)
    last = -1
    for document, offset, tokens in pieces:
        # the second and later pieces of a long document carry on its segment, if the row has room
        continued = sheet.ends_with(document)
        if layout.alone and sheet.column and not continued:
            sheet.end_row()
        while len(tokens):
            # a row without room for a segment, or BOS and a token, is full
            if sheet.column and sheet.column + (0 if continued else sheet.lead) >= layout.context:
                sheet.end_row()
                continued = False
            if sheet.row == layout.batch:
                yield sheet.contexts(Cursor(document, offset))
                sheet = _Sheet(layout)
            taken = sheet.put(document, tokens, continued)
            tokens, offset = tokens[taken:], offset + taken
            continued = True
        last = document
    if sheet.column:
        sheet.end_row()
    if sheet.row:
        yield sheet.contexts(Cursor(last + 1))
