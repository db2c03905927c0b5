"""Training and held-out rows that models share, with what is known about them.

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
from sae.book.measures.rate import RatePoint, bits_at, pca_rate_distortion
from sae.config import ImageDataConfig
from sae.data.images import ImageSet
from sae.runs.images import open_split

JUDGED = 2000  # held-out rows, at most, on which disentanglement is measured
MATCHED = (0.3, 0.1)  # FVU of PCA at the budgets of bits at which codes are compared


class Known(NamedTuple):
    """Factors of the first `JUDGED` held-out rows."""

    values: Tensor
    """int64 [n, K]: index of every factor's value; of labels, an indicator for every class."""
    names: tuple[str, ...]
    """Of the factors, [K]."""
    indicators: bool
    """Whether they are indicators of classes, of which every row has one, and not independent factors."""


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
    """SHA-256 of both, with which saved measures are checked."""
    budgets: tuple[float, ...]
    """Bits a sample at which PCA's FVU is each of `MATCHED`; NaN if it is never that low."""
    shape: tuple[int, ...] = ()
    """Channels, rows and columns of an image; empty for activations."""
    labels: tuple[Tensor, Tensor] | None = None
    """Classes of the training and of the held-out rows, int64 [n] and [m]."""
    known: Known | None = None
    atoms: Tensor | None = None
    """True directions [G, D]."""


def ground_of(tier: str, data: str, train: Tensor, heldout: Tensor, **known: object) -> Ground:
    """A ground with PCA's curve and the budgets that follow from it."""
    curve = pca_rate_distortion(train, heldout)
    budgets = tuple(bits_at(curve, fvu) for fvu in MATCHED)
    digest = hashlib.sha256()
    for part in (train, heldout):
        digest.update(np.ascontiguousarray(part.numpy()).data)
    return Ground(tier, data, train, heldout, curve, digest.hexdigest(), budgets, **known)  # pyright: ignore[reportArgumentType]


def pixel_ground(data: str, scale: Scale) -> Ground:
    """The images of `data`, with their factors, or else indicators of their classes."""
    config = ImageDataConfig(data=data, limit=scale.images)
    train, heldout = open_split(config, "train"), open_split(config, "heldout", limit=scale.heldout)
    labels = None if train.labels is None or heldout.labels is None else (train.labels, heldout.labels)
    known = {"shape": train.shape, "labels": labels, "known": known_of(heldout)}
    return ground_of("pixels", data, train.all(), heldout.all(), **known)


def planted_ground(scale: Scale) -> Ground:
    """Images that are sums of known atoms."""
    config = ImageDataConfig(data=PLANTED, limit=scale.planted)
    train, heldout = open_split(config, "train"), open_split(config, "heldout", limit=scale.heldout)
    return ground_of("planted", PLANTED, train.all(), heldout.all(), shape=train.shape, atoms=train.atoms)


def known_of(heldout: ImageSet) -> Known | None:
    """Factors, or class indicators, of the first `JUDGED` rows."""
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
