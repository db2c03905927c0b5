"""Reading a rate-distortion curve: its hull, FVU at matched bits, bits at matched FVU, and a Gaussian's limit.

fvu_at(curve, bits=40.0), bits_at(curve, fvu=0.2)                # curve: what `rate_distortion` gives
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor


class RatePoint(NamedTuple):
    """One step's quantiser, on held-out samples."""

    step: float
    """Width of a bin, in units of the output."""
    bits: float
    """Mean bits a sample, all latents together."""
    fvu: float
    """Of the decoded quantised codes."""
    l0: float
    """Mean number of symbols a sample that are not the latent's middle one."""
    unseen: float
    """Mean number of those that the latent never had in training: many call for more training samples."""


class Bound(NamedTuple):
    """A Gaussian source's limit at one water level."""

    bits: float
    """A sample."""
    fvu: float
    """The least reachable with these bits."""


def gaussian_bound(variances: Tensor, level: float) -> Bound:
    """Reverse water-filling (Cover & Thomas 2006, theorem 10.3.3) at a water level θ, for independent Gaussians.

    bits = Σ ½ log2 max(λ_i / θ, 1), fvu = Σ min(λ_i, θ) / Σ λ_i. A uniform quantiser with an ideal entropy coder stays
    ½ log2(2πe / 12) = .2546 bits a component above it as the step becomes fine (Gish & Pierce 1968).
    """
    wide = variances.double()
    bits = 0.5 * (wide / level).clamp_min(1).log2().sum()
    return Bound(bits.item(), (wide.clamp_max(level).sum() / wide.sum()).item())


def hull(curve: Iterable[RatePoint]) -> list[RatePoint]:
    """The lower convex hull of a curve, falling FVU over growing bits; what lies between is reached by time-sharing."""
    lower: list[RatePoint] = []
    for point in sorted(curve, key=lambda point: (point.bits, point.fvu)):
        if lower and not point.fvu < lower[-1].fvu:
            continue
        while len(lower) > 1 and _slope(lower[-2], lower[-1]) >= _slope(lower[-1], point):
            lower.pop()
        lower.append(point)
    return lower


def fvu_at(curve: Iterable[RatePoint], bits: float) -> float:
    """Least FVU with at most `bits` a sample, on the hull; NaN where no point has as few."""
    lower = hull(curve)
    return float(np.interp(bits, [point.bits for point in lower], [point.fvu for point in lower], left=np.nan))


def bits_at(curve: Iterable[RatePoint], fvu: float) -> float:
    """Least bits a sample for at most `fvu`, on the hull; NaN where no point has as little."""
    rising = hull(curve)[::-1]
    return float(np.interp(fvu, [point.fvu for point in rising], [point.bits for point in rising], left=np.nan))


def _slope(start: RatePoint, end: RatePoint) -> float:
    return (end.fvu - start.fvu) / (end.bits - start.bits)
