"""What models are held against: the rows they learn from and are judged on, with whatever is known of these.

ground = pixel_ground("digits", FULL)
ground.train, ground.heldout, ground.factors
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.book.comparison.plan import PLANTED, Scale
from sae.book.measures.rate import pca_rate_distortion
from sae.book.measures.rate_curve import RatePoint, bits_at
from sae.config import ImageDataConfig
from sae.data.images import ImageSet
from sae.runs.images import open_split

JUDGED = 2000  # held-out rows on which disentanglement is measured, at most
MATCHED = (0.3, 0.1)  # FVU of PCA whose bits are the budgets at which everyone is compared


class Known(NamedTuple):
    """What is known of the rows that are judged: the first `JUDGED` held-out ones."""

    values: Tensor
    """int64 [n, K]: index of every factor's value; of labels, an indicator for every class."""
    names: tuple[str, ...]
    """Of the factors, [K]."""
    indicators: bool
    """Whether they are indicators of classes, of which every row has one, and no independent factors."""


class Ground(NamedTuple):
    """One tier's common ground."""

    tier: str
    data: str
    """Name of the set, or of the activations."""
    train: Tensor
    """float32 [n, D]."""
    heldout: Tensor
    """float32 [m, D]."""
    pca: list[RatePoint]
    """The rate-distortion curve of all principal components."""
    digest: str
    """SHA-256 of both, by which measures that are kept are known to be of these rows."""
    budgets: tuple[float, ...]
    """Bits a sample at which PCA's FVU is each of `MATCHED`; NaN where it does not get there."""
    shape: tuple[int, int, int] | None = None
    """Of an image; None for activations."""
    labels: tuple[Tensor, Tensor] | None = None
    """Classes of the training and of the held-out rows, int64 [n] and [m]."""
    known: Known | None = None
    atoms: Tensor | None = None
    """True directions [G, D]."""


def ground_of(tier: str, data: str, train: Tensor, heldout: Tensor, **known: object) -> Ground:
    """A ground with PCA's curve, which fixes the budgets."""
    curve = pca_rate_distortion(train, heldout)
    budgets = tuple(bits_at(curve, fvu) for fvu in MATCHED)
    return Ground(tier, data, train, heldout, curve, _digest(train, heldout), budgets, **known)  # pyright: ignore[reportArgumentType]


def _digest(*parts: Tensor) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part.numpy()).data)
    return found.hexdigest()


def pixel_ground(data: str, scale: Scale) -> Ground:
    """The images of `data`, with their factors; of a set with labels alone, indicators of the classes."""
    config = ImageDataConfig(data=data, limit=scale.images)
    train, heldout = open_split(config, "train"), open_split(config, "heldout", limit=scale.heldout)
    labels = None if train.labels is None or heldout.labels is None else (train.labels, heldout.labels)
    return ground_of(
        "pixels",
        data,
        train.all(),
        heldout.all(),
        shape=train.shape,
        labels=labels,
        known=known_of(heldout),
    )


def planted_ground(scale: Scale) -> Ground:
    """Sums of known atoms."""
    config = ImageDataConfig(data=PLANTED, limit=scale.planted)
    train, heldout = open_split(config, "train"), open_split(config, "heldout", limit=scale.heldout)
    return ground_of("planted", PLANTED, train.all(), heldout.all(), shape=train.shape, atoms=train.atoms)


def known_of(heldout: ImageSet) -> Known | None:
    """Factors, or class indicators, of the rows that are judged."""
    if heldout.factors is not None and heldout.factor_values is not None:
        values = heldout.factor_values(torch.arange(min(JUDGED, heldout.count)))
        return Known(values, heldout.factors.names, indicators=False)
    if heldout.labels is None:
        return None
    labels = heldout.labels[:JUDGED]
    classes = labels.unique()
    if len(classes) < 2:
        return None
    names = tuple(heldout.label_names[c] if heldout.label_names else str(c) for c in classes.tolist())
    return Known((labels[:, None] == classes).long(), names, indicators=True)
