"""From the name of an image set to its images: which set, which options, which part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.config import ConfigError, check, unknown_choice
from sae.data.images import hub
from sae.data.images.base import ImageSet
from sae.data.images.dsprites import dsprites
from sae.data.images.fixed import digits, mnist5k
from sae.data.images.folder import folder
from sae.data.images.pictures import in_memory
from sae.data.images.planted import planted
from sae.data.images.shapes3d import shapes3d
from sae.data.rows import DataError

SPLITS = ("train", "heldout", "all")


class Kind(NamedTuple):
    """A named set: how it is made from the seed and its options, and the options' types."""

    make: Callable[..., ImageSet]
    options: Mapping[str, type] = {}


NAMED = {
    "digits": Kind(lambda seed: digits()),
    "mnist5k": Kind(lambda seed: mnist5k()),
    "dsprites": Kind(lambda seed, **options: dsprites(**options), {"size": int}),
    "shapes3d": Kind(lambda seed, **options: shapes3d(**options), {"size": int}),
    "planted": Kind(planted, {"size": int, "atoms": int, "l0": float, "noise": float, "count": int}),
}
FOLDER_OPTIONS: dict[str, type] = {"size": int, "channels": int}
HUB_OPTIONS = {**FOLDER_OPTIONS, "image": str, "label": str, "part": str}
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?")


def open_images(
    name: str,
    *,
    split: Literal["train", "heldout", "all"] = "train",
    heldout: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> ImageSet:
    """The images of a set, or of one part of it.

    Args:
        name: which set; the forms are listed at the top of `sae.data.images`.
        split: "train" and "heldout" are disjoint and in a random order; "all" is the whole set in its own order.
        heldout: share of the images that is held out.
        seed: of the split; for `planted` of the images, too.
        limit: the largest number of images, drawn from the split by the seed; a lower limit gives the first of them.

    Raises:
        ConfigError: an unknown name or option, or an argument out of range.
        DataError: a folder or data set that cannot be read, or a split that is empty.
        FetchError: `mnist5k` cannot be fetched.
    """
    if split not in SPLITS:
        raise unknown_choice("split", split, SPLITS)
    check(0 < heldout < 1, "heldout", heldout, "a share between 0 and 1")
    check(limit is None or limit >= 1, "limit", limit, "1 or more images")
    check(seed >= 0, "seed", seed, "0 or more")
    images, encoded = _open_whole(name, seed)
    positions = _positions(images.count, split, heldout, seed, limit)
    if positions is not None:
        if not len(positions):
            raise DataError(f"{name}: of {images.count} images none is left for split {split!r} (heldout={heldout})")
        images = images.select(positions)
    part = {"shape": list(images.shape), "split": split, "heldout": heldout, "seed": seed, "limit": limit}
    images = replace(images, provenance={**images.provenance, **part, "count": images.count})
    return in_memory(images) if encoded else images


def _open_whole(name: str, seed: int) -> tuple[ImageSet, bool]:
    """The whole set, and whether its images are encoded pictures, which are slow to decode."""
    base, _, query = name.partition("?")
    if base in NAMED:
        kind = NAMED[base]
        return kind.make(seed=seed, **_options(base, query, kind.options)), False
    if base.startswith("folder:"):
        return folder(Path(base.removeprefix("folder:")), **_options(base, query, FOLDER_OPTIONS)), True
    path = Path(base).expanduser()
    if path.is_dir():
        if hub.is_saved(path):
            return hub.from_saved(path, **_options(base, query, HUB_OPTIONS)), True
        return folder(path, **_options(base, query, FOLDER_OPTIONS)), True
    if match := _HUB_NAME.fullmatch(base):
        return hub.from_hub(match["name"], match["config"], **_options(base, query, HUB_OPTIONS)), True
    if "/" in base:
        raise DataError(f"{base}: no such folder")
    raise unknown_choice("image set", base, [*NAMED, "folder:PATH", "OWNER/NAME[:CONFIG] of the hub"])


def _options(base: str, query: str, known: Mapping[str, type]) -> dict[str, Any]:
    """The options behind the `?` of a name, each in its type."""
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in known:
            raise unknown_choice(f"{base}: option", key, known)
        try:
            options[key] = known[key](value)
        except ValueError:
            raise ConfigError(f"{base}: option {key}={value}: expected {known[key].__name__}") from None
    return options


def _positions(count: int, split: str, heldout: float, seed: int, limit: int | None) -> Tensor | None:
    """Positions of the split, int64; None for all of them in order."""
    if split == "all" and limit is None:
        return None
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    kept = count - round(heldout * count)
    part = {"train": order[:kept], "heldout": order[kept:], "all": order}[split]
    return part[:limit]
