"""Baselines for a dictionary: principal components of the training activations, and their mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Energies(NamedTuple):
    """Of rows x; float64, on the CPU."""

    square: Tensor
    """||x - mean||² [n]."""
    energy: Tensor
    """(v_i·(x - mean))² for every component i, [n, d]."""


class Prefixes(NamedTuple):
    """`Energies`, and of the projections x̂_k for every k from 1 to d; float64, on the CPU."""

    square: Tensor
    energy: Tensor
    cosine: Tensor
    """cos(x, x̂_k), 0 where either is zero, [n, d]."""
    hat_square: Tensor
    """||x̂_k||² [n, d]."""
    dot: Tensor
    """x·x̂_k [n, d]."""


class PCA:
    """x̂_k = mean + Σ_{i<=k} v_i v_i·(x - mean), v_i the leading eigenvectors of the covariance (Pearson 1901).

    mean [d] and components [d, d] (one a row, falling variance) are float64, fitted on training rows.
    """

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        self.mean, self.components = mean, components

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> PCA:
        """Fit on batches of rows [n, d], one pass, covariance in float64.

        Raises:
            ValueError: no rows.
        """
        stream = iter(batches)
        first = next(stream, None)
        if first is None:
            raise ValueError("PCA: expected at least one batch of rows, got none")
        # a fixed point near the mean keeps the covariance accurate where the mean is large
        centre = first.double().mean(0)
        count, total, second = 0, torch.zeros_like(centre), torch.zeros(len(centre), len(centre), dtype=torch.float64)
        for batch in itertools.chain([first], stream):
            offset = batch.double() - centre
            count += len(batch)
            total += offset.sum(0)
            second += offset.T @ offset
        covariance = second / count - torch.outer(total, total) / count**2
        _, vectors = torch.linalg.eigh(covariance)
        return cls(centre + total / count, vectors.T.flip(0).contiguous())

    def codes(self, x: Tensor, k: int | None = None) -> Tensor:
        """Rows [n, d] -> v_i·(x - mean) for the first k components (None: all), float64 [n, k], on the CPU."""
        return (x.double().cpu() - self.mean) @ self.components[:k].T

    def decode(self, z: Tensor) -> Tensor:
        """Codes [n, k] -> x̂_k, float64 [n, d]."""
        return z.double() @ self.components[: z.shape[1]] + self.mean

    def energies(self, x: Tensor) -> Energies:
        """||x - mean||² and the components' shares of it, of rows [n, d]."""
        return Energies((x.double().cpu() - self.mean).pow(2).sum(1), self.codes(x).pow(2))

    def prefixes(self, x: Tensor) -> Prefixes:
        """What of rows [n, d] depends on the number of components, for every k from 1 to d."""
        wide, z, along_mean = x.double().cpu(), self.codes(x), self.components @ self.mean
        energy = z.square()
        dot = (wide @ self.mean)[:, None] + (energy + z * along_mean).cumsum(1)
        hat_square = (self.mean.square().sum() + (energy + 2 * z * along_mean).cumsum(1)).clamp_min(0)
        norms = wide.norm(dim=1, keepdim=True) * hat_square.sqrt()
        cosine = torch.where(norms > 0, dot / norms, 0.0)
        return Prefixes((wide - self.mean).square().sum(1), energy, cosine, hat_square, dot)
