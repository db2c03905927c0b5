"""Reading a rate-distortion curve: its hull, FVU at matched bits, and bits at matched FVU.

fvu_at(curve, bits=40.0), bits_at(curve, fvu=0.2)                # curve: from `rate_distortion`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class RatePoint(NamedTuple):
    """One step's quantiser, on held-out samples."""

    step: float
    """Width of a bin, in units of the output."""
    bits: float
    """Mean bits a sample, all latents together."""
    fvu: float
    """Of the decoded quantised codes."""
    l0: float
    """Mean number of non-zero symbols a sample."""
    unseen: float
    """Mean number of those that the latent never had in training: if there are many, train on more samples."""


def hull(curve: Iterable[RatePoint]) -> list[RatePoint]:
    """The lower convex hull of a curve, FVU falling as bits rise; points between its corners need time-sharing."""
    lower: list[RatePoint] = []
    for point in sorted(curve, key=lambda point: (point.bits, point.fvu)):
        if lower and not point.fvu < lower[-1].fvu:
            continue
        while len(lower) > 1 and _slope(lower[-2], lower[-1]) >= _slope(lower[-1], point):
            lower.pop()
        lower.append(point)
    return lower


def fvu_at(curve: Iterable[RatePoint], bits: float) -> float:
    """Least FVU with at most `bits` a sample, on the hull; NaN if no point has as few."""
    lower = hull(curve)
    return float(np.interp(bits, [point.bits for point in lower], [point.fvu for point in lower], left=np.nan))


def bits_at(curve: Iterable[RatePoint], fvu: float) -> float:
    """Least bits a sample for at most `fvu`, on the hull; NaN if no point has as little."""
    rising = hull(curve)[::-1]
    return float(np.interp(fvu, [point.fvu for point in rising], [point.bits for point in rising], left=np.nan))


def _slope(start: RatePoint, end: RatePoint) -> float:
    return (end.fvu - start.fvu) / (end.bits - start.bits)
