"""Other tools' formats, one file each: `read` opens an SAE that another tool saved, the exports write for other tools.

    imported = read("their_sae")                 # the format is recognised; format="NAME" overrules
    codes = imported.model.encode(x)             # x [N, d]
    imported = read("their_clt:3")               # what a cross-layer transcoder reads at layer 3

A format that can be read is a module with `recognises(path) -> bool` and `read(path) -> Imported`, and its line in
`READERS`. CONTRIBUTING.md shows a whole one. A format that holds several layers in one folder has, besides,
`read_layer(path, layer) -> Imported`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from sae.base.reading import reading
from sae.config import ConfigError
from sae.interop.assembling import TWO_SIDED, assemble, cross_layer, gated, jump_relu, two_sided
from sae.interop.files import check_manifest, check_readable
from sae.interop.origin import BEFORE_GAIN, Imported, Origin

__all__ = [
    "BEFORE_GAIN",
    "READERS",
    "TWO_SIDED",
    "Imported",
    "Origin",
    "assemble",
    "cross_layer",
    "gated",
    "jump_relu",
    "matching",
    "read",
    "recognised",
    "split_layer",
    "two_sided",
]

READERS: dict[str, str] = {
    "circuit_tracer": "sae.interop.circuit_tracer",
    "dictionary_learning": "sae.interop.dictionary_learning",
    "gemma_scope": "sae.interop.gemma_scope",
    "gemma_scope_2": "sae.interop.gemma_scope_2",
    "goodfire": "sae.interop.goodfire",
    "llama_scope": "sae.interop.llama_scope",
    "llamascopium": "sae.interop.llamascopium",
    "openai": "sae.interop.openai",
    "qwen_scope": "sae.interop.qwen_scope",
    "saelens": "sae.interop.saelens",
    "sparsify": "sae.interop.sparsify",
    "temporal": "sae.interop.temporal",
}
"""Format -> the module that reads it, imported when it is needed."""


def read(path: str | Path, format: str = "auto") -> Imported:
    """The autoencoder in another tool's file or folder.

    Args:
        path: file or folder; `folder:LAYER` where the format holds one autoencoder for each layer.
        format: a key of `READERS`; "auto" takes the one format that recognises the path.

    Raises:
        ConfigError: nothing is there, the format is unknown, or not exactly one format recognises the path.
        CorruptError: a file is damaged, or the weights do not have the shapes of an autoencoder.
    """
    place, layer = split_layer(path)
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    check_manifest(path)
    # settings can be wrong in as many ways as there are formats
    with reading(path):
        format = recognised(path) if format == "auto" else format
        module = _module(format)
        if layer is None:
            return module.read(path)
        if not hasattr(module, "read_layer"):
            raise ConfigError(f"{path}:{layer}: {format} has no layers to select; expected {path}")
        return module.read_layer(path, layer)


class Source(NamedTuple):
    """Where an autoencoder is."""

    place: str
    layer: int | None
    """Of a folder that holds one autoencoder for each layer; None where none is named."""


def split_layer(source: str | Path) -> Source:
    """A source's place, and the layer that a colon and a number at its end select."""
    match = re.fullmatch(r"(.+):(\d+)", str(source))
    if match is None or Path(source).expanduser().exists():
        return Source(str(source), None)
    return Source(match[1], int(match[2]))


def recognised(path: Path) -> str:
    """The one format that recognises a path.

    Raises:
        ConfigError: none does, or several.
        CorruptError: none does, and a file there is damaged.
    """
    matches = matching(path)
    if not matches:
        check_readable(path)
    if len(matches) != 1:
        reason = f"could be any of {', '.join(matches)}" if matches else "is in no format that can be read"
        raise ConfigError(f"{path}: {reason}; name the format, one of: {_known()}")
    return matches[0]


def matching(path: Path) -> list[str]:
    """The formats that recognise a path."""
    return [name for name in READERS if _module(name).recognises(path)]


def _module(format: str) -> Any:
    if format not in READERS:
        raise ConfigError(f"format {format!r} is unknown; known: {_known()}")
    return importlib.import_module(READERS[format])


def _known() -> str:
    return ", ".join(sorted(READERS)) or "none"
