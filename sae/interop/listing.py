"""`sae list`: the published sets, or the autoencoders of one layer by their short names.

list_published(model="gemma-2-2b", layer=12)["published"][0]["name"]
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from sae.config import ConfigError
from sae.interop.published import SETS
from sae.interop.published.base import PublishedSet
from sae.interop.registry import Published, entries


def list_published(model: str | None = None, layer: int | None = None) -> dict[str, Any]:
    """One row a set; with a layer, one row an autoencoder of that layer, with its short name.

    Args:
        model: hub id of the language model, or what stands behind the slash in it.
        layer: from 0.

    Raises:
        ConfigError: no set is on this model, or none in this layer; names near models, or the layers that there are.
    """
    names = {key: of for key, of in SETS.items() if model is None or _is(of.model, model)}
    if model is not None and not names:
        models = sorted({_short(of.model) for of in SETS.values()})
        near = ", ".join(difflib.get_close_matches(_short(model), models, n=3, cutoff=0.0))
        raise ConfigError(f"--model {model}: no published set is on it; near ones: {near}")
    if layer is None:
        return {"published": [_row_of_set(key, of) for key, of in names.items()]}
    sets = {id(of) for of in names.values()}
    rows = [_row(entry) for entry in entries() if entry.layer == layer and id(entry.of) in sets]
    if not rows:
        layers = {number for of in names.values() for numbers in of.variants.values() for number in numbers}
        raise ConfigError(f"--layer {layer}: nothing is published there; layers: {_ranges(layers)}")
    return {"published": rows}


def _row_of_set(key: str, of: PublishedSet) -> dict[str, Any]:
    members = [entry for entry in entries() if entry.of is of]
    return {
        "set": key,
        "model": of.model,
        "site": None if of.site is None else of.site.format(layer="L"),
        "layers": _ranges({entry.layer for entry in members if entry.layer is not None}) or None,
        "width": ", ".join(dict.fromkeys(entry.width for entry in members)) or None,
        "autoencoders": len(members),
        "format": of.format,
        "source": of.repository,
        "licence": of.licence,
    }


def _row(entry: Published) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.of.model,
        "site": entry.site,
        "width": entry.width or None,
        "format": entry.of.format,
        "source": f"{entry.repository}:{entry.path}",
        "licence": entry.of.licence,
    }


def _short(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _is(model: str, asked: str) -> bool:
    return model.lower() == asked.lower() or _short(model) == asked.lower()


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs shortened: 0-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
