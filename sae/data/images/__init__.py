"""Sets of images, by name: `open_images("mnist5k", split="train")`.

    images = open_images("dsprites", split="heldout")
    x = images.render(torch.arange(64))          # float32 [64, 4096]

Train and heldout are disjoint: the images are put in the order of a permutation drawn from the seed, and the last
fifth of it is held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sae.data.images.base import Factors, ImageSet
from sae.data.images.fixed import digits, mnist5k
from sae.fields import ConfigError, unknown_choice

__all__ = ["SPLITS", "Factors", "ImageSet", "open_images"]

SPLITS = ("train", "heldout", "all")
NAMED: dict[str, Callable[[], ImageSet]] = {"digits": digits, "mnist5k": mnist5k}


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
        name: `digits` or `mnist5k`.
        split: "train" and "heldout" are disjoint and in a random order; "all" is the whole set in its own order.
        heldout: share of the images that is held out.
        seed: of the split.
        limit: keep so many images, drawn from the split by the seed (those of a lower limit are among them).

    Raises:
        ConfigError: an unknown name, or an argument out of range.
    """
    if split not in SPLITS:
        raise unknown_choice("split", split, SPLITS)
    if not 0 < heldout < 1:
        raise ConfigError(f"heldout {heldout}: expected a share between 0 and 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: expected at least 1")
    if name not in NAMED:
        raise unknown_choice("image set", name, NAMED)
    images = NAMED[name]()
    chosen = _positions(images.count, split, heldout, seed, limit)
    if chosen is not None:
        images = images.select(chosen)
    origin = {"split": split, "heldout": heldout, "seed": seed, "limit": limit, "count": images.count}
    return replace(images, provenance={**images.provenance, **origin})


def _positions(count: int, split: str, heldout: float, seed: int, limit: int | None) -> Tensor | None:
    """Positions of the split, int64; None for all of them in order."""
    if split == "all" and limit is None:
        return None
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    kept = count - round(heldout * count)
    part = {"train": order[:kept], "heldout": order[kept:], "all": order}[split]
    return part[:limit]
