"""Activations in 8 bits: x ≈ s·q with one scale s a row, and the row's largest entries exact (LLM.int8, Dettmers et al.
2022, keeps outliers apart by columns; here by entries, since massive activations come in single tokens too).

    quantised = quantise(rows)              # [n, d] float32
    dequantise(quantised)                   # [n, d] float32

Of a row, the ⌈d/72⌉ entries of largest magnitude are outliers, stored in float32 with their places: 6 bytes each, so a
row takes d + 4 + 6 ⌈d/72⌉ bytes beside its columns, 55% of float16's at d = 576. The others are rounded to
q = round(x / s) in -127..127, s = max |x| / 127 over them. An entry's error is at most s/2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ENTRIES_AN_OUTLIER = 72
STEPS = 127


class Quantised(NamedTuple):
    """Rows [n, d] in 8 bits, with o = ⌈d/72⌉ outliers each."""

    values: Tensor
    """q, int8 [n, d]; 0 where an outlier is."""
    scale: Tensor
    """s, float32 [n]."""
    outlier: Tensor
    """The largest entries, float32 [n, o]."""
    place: Tensor
    """Their columns, [n, o]: int16, or int32 where d exceeds it."""


def outliers_a_row(width: int) -> int:
    """How many entries of a row of `width` are stored exactly."""
    return math.ceil(width / ENTRIES_AN_OUTLIER)


def row_bytes(width: int) -> int:
    """Bytes of a quantised row."""
    return width + 4 + outliers_a_row(width) * (4 + _place_dtype(width).itemsize)


def quantise(rows: Tensor) -> Quantised:
    """Rows float32 [n, d], finite, in 8 bits."""
    width = rows.shape[1]
    place = rows.abs().topk(outliers_a_row(width), dim=1).indices
    outlier = rows.gather(1, place)
    rest = rows.scatter(1, place, 0.0)
    scale = rest.abs().amax(1) / STEPS
    # a row of zeros has no scale: its values are 0 whatever it is divided by
    values = (rest / torch.where(scale > 0, scale, 1.0).unsqueeze(1)).round().clamp(-STEPS, STEPS).to(torch.int8)
    return Quantised(values, scale, outlier, place.to(_place_dtype(width)))


def dequantise(quantised: Quantised) -> Tensor:
    """Rows float32 [n, d]."""
    rows = quantised.values.float().mul_(quantised.scale.unsqueeze(1))
    return rows.scatter_(1, quantised.place.long(), quantised.outlier)


def _place_dtype(width: int) -> torch.dtype:
    return torch.int16 if width <= torch.iinfo(torch.int16).max + 1 else torch.int32
