"""What a pass reads, be it text or images: documents in chunks of tokens.

A document is a text or an image. A token is a token of the text, or one row of an image's code: an image whose code has
P rows (the places of a feature map) has P tokens, and each of them stands for the image's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sae.features.store.documents import Tokens
from sae.features.store.lens import Lens
from sae.features.store.text import Vocabulary
from sae.models.autoencoder import Autoencoder

Mark = list[int]
"""Where a later pass resumes, as JSON values."""


class ReadChunk(NamedTuple):
    """What a chunk contains, once it has been read."""

    rows: Any
    """The tokens to collect from, as `Subject.inputs_of` takes them."""
    tokens: Tokens
    """Where they stand."""
    text: Tokens
    """All known tokens of their segments, to be shown around an example."""
    left_out: dict[str, int]
    """Number of tokens left out, by kind."""


class Chunk(NamedTuple):
    """One part of a pass. It costs little until `read` is called, so processes can share out the chunks."""

    tokens: int
    """Number of tokens in it, those left out included."""
    after: Mark
    """Where the next chunk begins."""
    open_document: int | None
    """The document that continues in the next chunk, if one does."""
    read: Callable[[], ReadChunk]


class Subject(Protocol):
    """A finished run with the data that its features are collected over."""

    folder: Path
    model: Autoencoder
    limit: int
    """Tokens to read."""

    def identity(self) -> dict[str, Any]:
        """What must not change between a pass and its continuation, as JSON values; "weights" is their SHA-256."""
        ...

    def info(self) -> dict[str, Any]:
        """Further JSON values for readers of the store: "kind" (language or image), "model", "site", ..."""
        ...

    def vocabulary(self) -> Vocabulary:
        """The string of every token."""
        ...

    def chunks(self, mark: Mark) -> Iterator[Chunk]:
        """Chunks from a mark on; [0, 0] is the beginning."""
        ...

    def opening(self) -> str:
        """The beginning of the data, printed before the pass; "" for nothing."""
        ...

    def inputs_of(self, rows: Any) -> Tensor:
        """What the autoencoder encodes of `ReadChunk.rows`, float32 [n, dim]; it has a row of codes for every token."""
        ...

    def prepare(self, lens: Lens) -> None:
        """Compute ahead, at the end of a pass, what follows from the weights alone."""
        ...
