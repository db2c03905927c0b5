"""Token ids to contexts: documents packed into rows of one length, from any `Cursor` on, in a background thread.

    for contexts in pack(open_documents("demo"), tokenizer, context=256, batch=16, beginning=(1,)):
        contexts.tokens, contexts.next

A **segment** is a document, or the part of one that fits into a context. Every segment begins with the same tokens
(usually BOS, sometimes none) and at position 0, and `isolation` keeps attention inside it.

Letters: B contexts in a batch, S tokens in a context.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sae.data.columns import DataError
from sae.data.documents import Document
from sae.data.prefetch import prefetch
from sae.data.tokens import Tokenized, tokenize, without_first

# batches of contexts prepared ahead
AHEAD = 4


class Cursor(NamedTuple):
    """Where a reader stands in a data set. Checkpoints, stores and collections keep it as a list of its numbers."""

    document: int = 0
    """Index of the document in which the next context begins."""
    token: int = 0
    """Tokens of that document in earlier contexts (not counting what begins a segment)."""
    taken: int = 0
    """Training rows already taken from the forward pass that begins there."""
    epoch: int = 1
    """Which pass over the data set this is, from 1."""


BEGINNING = Cursor()


class Contexts(NamedTuple):
    """One batch of packed tokens."""

    tokens: Tensor
    """[B, S] int64."""
    document: Tensor
    """[B, S] int64: index of the token's document; -1 for padding."""
    position: Tensor
    """[B, S] int64: position inside the segment, from 0; padding counts from 0 as well."""
    start: Tensor
    """[B, S] int64: tokens of the document before the token's segment; 0 for padding."""
    next: Cursor
    """Where the following batch begins."""
    role: Tensor | None = None
    """[B, S] int64: index into `roles` of the role whose turn the token belongs to, -1 for none. None where no document
    of the batch is a conversation."""
    roles: tuple[str, ...] = ()
    """Names of the roles that occur in the batch."""

    def part(self, first: int, last: int) -> Contexts:
        """Contexts `first` to `last` of this batch, the last one not included; `next` stays that of the whole batch."""
        names = ("tokens", "document", "position", "start", *(() if self.role is None else ("role",)))
        return self._replace(**{name: getattr(self, name)[first:last] for name in names})

    def of_roles(self, wanted: Collection[str]) -> Tensor:
        """Whether each token belongs to a turn of one of these roles, bool [B, S]."""
        if self.role is None:
            return torch.zeros_like(self.tokens, dtype=torch.bool)
        # the last entry is what -1 reads
        known = torch.tensor([*(name in wanted for name in self.roles), False])
        return known[self.role]


class DocumentStream(Protocol):
    """What `pack` reads: `Documents`, or anything that iterates from an index."""

    def iterate(self, start: int = 0) -> Iterator[Document]: ...


def pack(
    documents: DocumentStream,
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
        tokenizer: of transformers; copied, since two threads must not use a fast tokenizer at once.
        context: S, tokens in a context, padding and BOS included.
        batch: B; the last batch may be smaller.
        beginning: ids that begin every segment, `named_ids` by default. A text that begins with them has them once.
        start: where to begin; only its document and token count.
        isolate: "pack" fills contexts with one segment after another; "pad" gives each segment a row to itself,
            padded on the right, for models whose attention cannot be cut (see `choose_isolation`).

    Raises:
        ValueError: a size out of range, or an unknown `isolate`.
        DataError: while iterating, where `start` lies beyond the end of its document: it came from other data.
    """
    if isolate not in ("pack", "pad"):
        raise ValueError(f"isolate: {isolate!r} is neither 'pack' nor 'pad'")
    first = named_ids(tokenizer) if beginning is None else beginning
    least = len(first) + 1
    if context < least or batch < 1:
        raise ValueError(f"context, batch: {context}, {batch}; at least {least} tokens and 1 context are needed")
    layout = _Layout(context, batch, first, padding_token(tokenizer), alone=isolate == "pad")
    pieces = without_first(tokenize(documents.iterate(start.document), copy.deepcopy(tokenizer)), first)
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


def _skip(pieces: Iterator[Tokenized], start: Cursor) -> Iterator[Tokenized]:
    """Leave out the first `start.token` tokens of document `start.document`."""
    reached = start.token == 0
    for piece in pieces:
        if not reached and piece.document == start.document:
            done = max(0, start.token - piece.offset)
            if done < len(piece.tokens):
                reached = True
                yield piece.after(done)
            continue
        if not reached:
            break
        yield piece
    if not reached:
        raise DataError(
            f"document {start.document} has no token {start.token}: the data set or the tokenizer is not the one that "
            "the run began with"
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
        self.start = np.zeros(shape, np.int64)
        self.role = np.full(shape, -1, np.int64)
        self.roles: list[str] = []
        self.has_roles = False
        self.row = self.column = 0

    @property
    def lead(self) -> int:
        """Tokens that a segment needs before its text."""
        return len(self.layout.first)

    def ends_with(self, document: int) -> bool:
        return self.column > 0 and self.document[self.row, self.column - 1] == document

    def put(self, piece: Tokenized, continued: bool) -> int:
        """Write as many of a piece's tokens as fit into the current row, and return their number.

        With `continued` they extend the row's last segment, without a new beginning and position 0.
        """
        first = () if continued else self.layout.first
        lead = len(first)
        taken = min(len(piece.tokens), self.layout.context - self.column - lead)
        begin, end = self.column, self.column + lead + taken
        self.tokens[self.row, begin : begin + lead] = first
        self.tokens[self.row, begin + lead : end] = piece.tokens[:taken]
        if piece.role is not None:
            self.role[self.row, begin + lead : end] = self._numbers(piece.roles)[piece.role[:taken]]
            self.has_roles = True
        self.document[self.row, begin:end] = piece.document
        from_position = self.position[self.row, begin - 1] + 1 if continued else 0
        self.position[self.row, begin:end] = np.arange(from_position, from_position + end - begin)
        self.start[self.row, begin:end] = self.start[self.row, begin - 1] if continued else piece.offset
        self.column = end
        return taken

    def _numbers(self, names: tuple[str, ...]) -> np.ndarray:
        """This batch's numbers of a piece's roles, and -1 as the last one, for tokens of no role."""
        self.roles += [name for name in names if name not in self.roles]
        return np.array([*(self.roles.index(name) for name in names), -1], np.int64)

    def end_row(self) -> None:
        rest = self.layout.context - self.column
        self.position[self.row, self.column :] = np.arange(rest)
        self.row, self.column = self.row + 1, 0

    def contexts(self, cursor: Cursor) -> Contexts:
        arrays = (self.tokens, self.document, self.position, self.start, self.role)
        tokens, document, position, start, role = (torch.from_numpy(array[: self.row]) for array in arrays)
        return Contexts(tokens, document, position, start, cursor, role if self.has_roles else None, tuple(self.roles))


def _assemble(pieces: Iterator[Tokenized], layout: _Layout) -> Iterator[Contexts]:
    sheet = _Sheet(layout)
    last = -1
    for piece in pieces:
        # later pieces of a long document extend its segment if the row has room
        continued = sheet.ends_with(piece.document)
        if layout.alone and sheet.column and not continued:
            sheet.end_row()
        while len(piece.tokens):
            # a row without room for a segment, or BOS and a token, is full
            if sheet.column and sheet.column + (0 if continued else sheet.lead) >= layout.context:
                sheet.end_row()
                continued = False
            if sheet.row == layout.batch:
                yield sheet.contexts(Cursor(piece.document, piece.offset))
                sheet = _Sheet(layout)
            piece = piece.after(sheet.put(piece, continued))
            continued = True
        last = piece.document
    if sheet.column:
        sheet.end_row()
    if sheet.row:
        yield sheet.contexts(Cursor(last + 1))
