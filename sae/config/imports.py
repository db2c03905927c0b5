"""Settings of `sae import`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae.config.fields import Limited
from sae.config.run import Device


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Limited):
    """How another tool's autoencoder becomes a run: what its files do not say, or say wrongly."""

    out: Path
    """Run folder to write."""
    format: str = "auto"
    """The tool's format; auto recognises it, and says which it took."""
    model: str | None = None
    """The language model; by default the one that the files name. `demo`, a hub id, a folder or a .gguf file."""
    site: str | None = None
    """Where the autoencoder reads, as in `sae train`; by default the site that the files name."""
    target_site: str | None = None
    """Transcoders: where the reconstruction belongs; by default what the files say."""
    dataset: str | None = None
    """Text to evaluate and browse it on, as in `sae train`; without it only `sae verify`, `sae export` and Python read
    the run."""
    text_field: str | None = None
    """Column of that data set that is read; see `sae train`."""
    context: int | None = None
    """Tokens in one context; by default as the files say, else 256."""
    bos: str = "auto"
    """First token of every segment: auto (as the files say, else as in `sae train`), none, or a token."""
    heldout: float = 0.1
    """Share of documents set aside for evaluation. The autoencoder may have been trained on them elsewhere."""
    device: Device = "auto"
    """Where to run the language model: auto takes a GPU where there is one."""
