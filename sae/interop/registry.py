"""Published autoencoders by short names: what a name stands for, which names exist, what the authors say of them.

    entry = named("gemma-scope-2b-pt-res/layer_12/width_16k/canonical")
    entry.repository, entry.path       # "google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"

A name is that of a set in `SETS` (`published.py`), a slash, and the autoencoder's place in the set's repository.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from sae.config import ConfigError
from sae.interop import Origin
from sae.interop.published import SETS
from sae.interop.published.base import PublishedSet


class Published(NamedTuple):
    """One published autoencoder."""

    name: str
    """Its short name."""
    of: PublishedSet
    layer: int | None
    variant: str

    @property
    def repository(self) -> str:
        return self.of.repository

    @property
    def path(self) -> str:
        """Its place in the repository."""
        return self.of.place(self.of.path, self.layer, self.variant)

    @property
    def also(self) -> tuple[str, ...]:
        """Further files of the repository that it consists of."""
        return tuple(self.of.place(pattern, self.layer, self.variant) for pattern in self.of.also)

    @property
    def site(self) -> str | None:
        return None if self.of.site is None else self.of.site.format(layer=self.layer)

    @property
    def width(self) -> str:
        """Number of latents as the authors write it."""
        match = re.search(r"width_(\d+[km])", self.variant)
        return self.of.width or (match[1] if match else "")

    def completed(self, origin: Origin) -> Origin:
        """What the files say, with what is known of the set in its place."""
        of = self.of
        known: dict[str, Any] = {
            "model": of.model,
            "sites": None if self.site is None else (self.site,),
            "targets": None if of.target is None else (of.target.format(layer=self.layer),),
            "bos": of.bos,
            "context": of.context,
            "dataset": of.dataset,
            "left_out": of.left_out,
            "licence": of.licence,
        }
        notes = (*origin.notes, *of.notes)
        return origin._replace(notes=notes, **{name: value for name, value in known.items() if value is not None})


def named(name: str) -> Published | None:
    """The autoencoder of a short name; None for a hub id.

    Raises:
        ConfigError: there is no autoencoder of this name; names three near ones.
    """
    names = _names()
    if name in names:
        return names[name]
    key = _set_of(name)
    if key is not None:
        layer_variant = _matched(SETS[key], _short(SETS[key]), name[len(key) + 1 :])
        if layer_variant is not None:
            return Published(name, SETS[key], *layer_variant)
    elif name.count("/") == 1 and not difflib.get_close_matches(name.partition("/")[0], SETS, n=1, cutoff=0.8):
        return None
    raise ConfigError(f"{name}: no published autoencoder has this name; near ones: {', '.join(near(name))}")


def at(repository: str, path: str) -> Published | None:
    """The autoencoder at a place of a repository, which may lack its organisation; None where the table has none."""
    for key, of in SETS.items():
        if repository in (of.repository, of.repository.partition("/")[2]):
            for layer, variant in _listed(of):
                if of.place(of.path, layer, variant) == path:
                    return Published(_name(key, of, layer, variant), of, layer, variant)
            if (match := _matched(of, of.path, path)) is not None:
                return Published(_name(key, of, *match), of, *match)
    return None


def near(name: str, n: int = 3) -> list[str]:
    """The n names that are nearest to one."""
    names = list(_names())
    # among the sets with the nearest names, because there are thousands of names
    first = name.partition("/")[0]
    sets = difflib.get_close_matches(first, {key.partition("/")[0] for key in SETS}, n=n, cutoff=0.0)
    pool = [other for other in names if other.partition("/")[0] in (sets[:1] if first == sets[0] else sets)]
    return difflib.get_close_matches(name, pool, n=n, cutoff=0.0)


def entries() -> Iterator[Published]:
    """Every published autoencoder that the table names."""
    yield from _names().values()


def _set_of(name: str) -> str | None:
    """The longest set's name that begins a short name."""
    keys = [key for key in SETS if name == key or name.startswith(f"{key}/")]
    return max(keys, key=len, default=None)


def _short(of: PublishedSet) -> str:
    return of.short or of.path


def _name(key: str, of: PublishedSet, layer: int | None, variant: str) -> str:
    return f"{key}/{_short(of).format(layer=layer, variant=variant)}"


def _listed(of: PublishedSet) -> Iterator[tuple[int | None, str]]:
    for variant, layers in of.variants.items():
        for layer in layers or (None,):
            yield layer, variant


def _matched(of: PublishedSet, pattern: str, text: str) -> tuple[int | None, str] | None:
    """Layer and variant of a text of this pattern, if the variant is one of those that only the repository knows."""
    if not of.further:
        return None
    expression = re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)")
    match = re.fullmatch(expression.replace(r"\{variant\}", f"(?P<variant>{of.further})"), text)
    if match is None:
        return None
    layer = match.groupdict().get("layer")
    known = {number for layers in of.variants.values() for number in layers}
    if layer is not None and int(layer) not in known:
        return None
    return None if layer is None else int(layer), match["variant"]


@cache
def _names() -> dict[str, Published]:
    names = (
        Published(_name(key, of, layer, variant), of, layer, variant)
        for key, of in SETS.items()
        for layer, variant in _listed(of)
    )
    return {entry.name: entry for entry in names}
