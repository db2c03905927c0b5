"""What a pass goes over: the seam between collecting and what is read, be it text or images.

A document is a text or an image. A token is a token of the text, or one row of an image's code: an image whose code has
P rows (the places of a feature map) has P tokens, all of which are the image's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sae.config import ConfigError
from sae.features.store.documents import Tokens
from sae.features.store.lens import Lens
from sae.features.store.text import Vocabulary
from sae.models.autoencoder import Autoencoder
from sae.runs.base import KINDS, called, kind_of

Mark = list[int]
"""Where to go on, as JSON values."""


class Read(NamedTuple):
    """What the steps of a source give when they are worked on."""

    rows: Any
    """The tokens to collect from, as `Subject.inputs_of` takes them."""
    tokens: Tokens
    """Where they stand."""
    text: Tokens
    """All tokens of their segments that are known, for showing."""
    left_out: dict[str, int]
    """Tokens left out, by kind."""


class Step:
    """One piece of the work: cheap to come by, so that processes can share the steps out; `read` does the work."""

    def __init__(self, tokens: int, after: Mark, open_document: int | None, read: Callable[[], Read]) -> None:
        self.tokens = tokens
        """Tokens in it, those left out included."""
        self.after = after
        """From where the next step goes on."""
        self.open_document = open_document
        """The document that goes on in the next step, or None."""
        self.read = read


class Source(Protocol):
    """A stream of steps."""

    def steps(self, mark: Mark) -> Iterator[Step]:
        """Steps from a mark on; [0, 0] is the beginning."""
        ...


class Subject(Protocol):
    """A finished run with what its features are collected over."""

    folder: Path
    model: Autoencoder
    limit: int
    """Tokens to read."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a pass to go on, "weights" (their SHA-256) among it, as JSON values."""
        ...

    def info(self) -> dict[str, Any]:
        """What readers of the store are told besides: "kind" (language or image), "model", "site", ..."""
        ...

    def vocabulary(self) -> Vocabulary:
        """What every token is called."""
        ...

    def source(self) -> Source:
        """The stream of tokens."""
        ...

    def opening(self) -> str:
        """What a person is shown of the data before the pass; "" for nothing."""
        ...

    def inputs_of(self, rows: Any) -> Tensor:
        """What the autoencoder encodes of `Read.rows`, float32 [n, dim]; codes are of as many rows as tokens."""
        ...

    def prepare(self, lens: Lens) -> None:
        """Compute ahead, at the end of a pass, what else is told from weights alone."""
        ...


def check_language(run: str | Path, what: str) -> None:
    """Refuse other kinds of run for what only a language model can do; `what` is that, as the subject of a sentence.

    Raises:
        ConfigError, CorruptError: it is one, or no run.
    """
    kind = kind_of(run)
    if kind != "language":
        raise ConfigError(f"{run}: {called(kind)}; {what} needs {KINDS['language'].what}")
