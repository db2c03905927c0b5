"""Counts, exact sums and histograms of every latent's activations: the same in any order, batch or process.

Sums of floats depend on the order of addition. Here every value is split into 32-bit digits of a fixed-point number.
Digits are added as integers (a small superaccumulator, Kulisch 1971), and the sum is rounded once, when it is read.

    statistics = Statistics(width=4608)
    statistics.add(latent, value)
    statistics.count, read_sum(statistics.sums.numpy(), SUM_DIGITS), statistics.histogram
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LOW, HIGH = -20, 24
"""The histogram's bins reach from 2^LOW to 2^HIGH; values outside count in the first or last bin."""
BINS = 2 * (HIGH - LOW)
_FIRST = (LOW + 127) << 1
# exponents of the digits' units, highest first: values are cut off at 2^-64, squares at 2^-96; both are below 2^128
SUM_DIGITS = (96, 64, 32, 0, -32, -64)
SQUARE_DIGITS = (96, 64, 32, 0, -32, -64, -96)
_BASE = 2.0**32
_AT_ONCE = 1 << 17  # firings whose digits are in memory together
LARGEST = 2.0**63
"""Largest activation, so that its square fits the digits."""


class Statistics:
    """Per latent: how often it fired, sum and sum of squares, and a histogram in half-octave bins."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(width, *shape, dtype=torch.int64, device=device)

        self.count = zeros()
        """Firings, int64 [F]."""
        self.sums = zeros(len(SUM_DIGITS))
        """Digits of the sums, see `read_sum`."""
        self.squares = zeros(len(SQUARE_DIGITS))
        """Digits of the sums of squares."""
        self.histogram = zeros(BINS)
        """Firings by value, int64 [F, BINS]; see `edges`."""

    def add(self, latent: Tensor, value: Tensor) -> None:
        """Count firings: latents int64 [E] and positive values, float32 [E]."""
        for part in zip(latent.split(_AT_ONCE), value.split(_AT_ONCE), strict=True):
            self._add(*part)

    def _add(self, latent: Tensor, value: Tensor) -> None:
        self.count.index_add_(0, latent, torch.ones_like(latent))
        exact = value.double()
        self.sums.index_add_(0, latent, _digits(exact, SUM_DIGITS))
        self.squares.index_add_(0, latent, _digits(exact * exact, SQUARE_DIGITS))  # 48 bits: a double holds them
        bin = ((value.view(torch.int32) >> 22) - _FIRST).clamp(0, BINS - 1)
        self.histogram.view(-1).index_add_(0, latent * BINS + bin, torch.ones_like(latent))

    def carry(self) -> None:
        """Bring all digits but the first below 2^32: needed every 2^30 firings; then equal sums have equal digits."""
        for digits in (self.sums, self.squares):
            for i in range(digits.shape[1] - 1, 0, -1):
                digits[:, i - 1] += digits[:, i] >> 32
                digits[:, i] &= (1 << 32) - 1


def edges() -> np.ndarray:
    """Lower edges of the histogram's bins, float32 [BINS]: 2^e and 1.5 x 2^e."""
    return ((np.arange(BINS, dtype=np.int32) + _FIRST) << 22).view(np.float32)


def read_sum(digits: np.ndarray, exponents: tuple[int, ...]) -> np.ndarray:
    """Carried digits [F, D] -> the numbers they stand for, float64 [F]; smallest first, so that little is lost."""
    total = np.zeros(len(digits))
    for i in range(len(exponents) - 1, -1, -1):
        total += digits[:, i].astype(np.float64) * 2.0 ** exponents[i]
    return total


def _digits(value: Tensor, exponents: tuple[int, ...]) -> Tensor:
    """Float64 values [E], at least 0 -> their base-2^32 digits, int64 [E, D]; what lies below the last is cut off."""
    above = torch.zeros_like(value)
    digits = torch.empty(len(value), len(exponents), dtype=torch.int64, device=value.device)
    for i, exponent in enumerate(exponents):
        whole = (value * 2.0**-exponent).floor()
        # both are whole numbers of at most 53 significant bits, and so is their difference: nothing is rounded
        digits[:, i] = (whole - above * _BASE).long()
        above = whole
    return digits
