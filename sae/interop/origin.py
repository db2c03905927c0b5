"""What is read of another tool's files: an autoencoder, and what they say of it beside its weights."""

from __future__ import annotations

import re
from typing import NamedTuple

from sae.models.autoencoder import Autoencoder

BEFORE_GAIN = re.compile(r"blocks\.(\d+)\.ln2\.hook_normalized")
"""TransformerLens' hook between the division and the gain of the norm before the MLP: mlp_in, `Origin.before_gain`."""


RESIDUAL = "it reads the residual before the norm of the MLP"
WITH_GAIN = "it reads the output of the norm before the MLP, with the norm's gain"
WITHOUT_GAIN = "it was trained on the output of the norm before the MLP, without the norm's gain"
"""The three conventions of what transcoders read, as notes of an import."""


class Origin(NamedTuple):
    """What another tool's files say beside their weights; it is kept in the run's config.json under "imported"."""

    tool: str
    """The tool, or the set of published autoencoders."""
    architecture: str = ""
    """As the tool calls it."""
    model: str | None = None
    """Hub id of the language model."""
    sites: tuple[str, ...] = ()
    """Where it reads: names of sites in our spelling, or module paths."""
    targets: tuple[str, ...] = ()
    """Where its reconstruction belongs; empty for `sites` themselves."""
    bos: bool | None = None
    """Whether contexts began with BOS; None where nothing says so."""
    context: int | None = None
    """Tokens a context."""
    dataset: str | None = None
    """Text that it was trained on."""
    normalisation: str | None = None
    """What the tool does to its inputs, in its own word; it is part of the model that `read` returns."""
    left_out: str | None = None
    """Tokens that it was not trained on."""
    licence: str | None = None
    before_gain: bool = False
    """Whether it reads the output of the norm before the MLP without the norm's gain, while the site has the gain.

    An import with a language model divides the weights by the gain (`sae.interop.gain`), after which this is false."""
    notes: tuple[str, ...] = ()
    """What a reader of its numbers must know: a convention of its inputs, a threshold that was filled in."""


class Imported(NamedTuple):
    """An autoencoder from another tool's file."""

    model: Autoencoder
    """In float32, ready for `encode` and `decode`."""
    origin: Origin
