"""Input normalisation: maps fitted to the first batches, so that the same settings suit activations of any model.

scale and centre make mean ||x||² = d over the rows they are fitted to; whiten makes it the rank of their covariance
(less the ridge's part), and layer_norm d - 1 for every token. All but layer_norm are one affine map for all tokens,
folded into the saved weights; layer norm depends on the token and remains part of the saved autoencoder.

    scale       x' = s x
    centre      x' = s (x - mean)
    whiten      x' = C^(-1/2) (x - mean), C the covariance (ZCA: Bell & Sejnowski 1997)
    layer_norm  x' = (x - mean_d(x)) / sd_d(x), a token at a time (Gao et al. 2024, appendix A.1)
    none        x' = x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError

RIDGE = 1e-4  # added to the covariance's diagonal, in units of its mean: limits directions without variance
LAYER_NORM_EPS = 1e-5


class Affine(NamedTuple):
    """x' = M (x - offset), with M diagonal or symmetric."""

    offset: Tensor
    """[d]"""
    matrix: Tensor
    """M: its diagonal [d], or all of it [d, d]."""
    inverse: Tensor
    """M^(-1), likewise."""

    def apply(self, x: Tensor) -> Tensor:
        """x [N, d] -> x'."""
        return _times(x - self.offset, self.matrix)

    def undo(self, x: Tensor) -> Tensor:
        """x' [N, d] or [d] -> x."""
        return _times(x, self.inverse) + self.offset

    def encoder(self, W: Tensor) -> Tensor:
        """Encoder rows [F, d] that read x - offset as `W` reads x'."""
        return _times(W, self.matrix)

    def atoms(self, W: Tensor) -> Tensor:
        """Atoms [F, d] in the units of x, of atoms of x'."""
        return _times(W, self.inverse)


def identity(dim: int) -> Affine:
    """x' = x."""
    return Affine(torch.zeros(dim), torch.ones(dim), torch.ones(dim))


def fit(name: str, x: Tensor, widths: Sequence[int]) -> Affine:
    """The named affine map, fitted to rows x [n, d] of sites of these widths, side by side, each with its own scale.

    `none` gives the identity, and so does `layer_norm`, which the function `layer_norm` applies token by token.

    Raises:
        ConfigError: nothing can be scaled: rows are all zero or, where their mean is subtracted, all equal.
    """
    x = x.double()
    offset = x.mean(0) if name in ("centre", "whiten") else torch.zeros_like(x[0])
    sites = [x.shape[1]] if name == "whiten" else list(widths)
    parts = (x - offset).split(sites, dim=1)
    if name in ("layer_norm", "none"):
        matrix = inverse = torch.ones_like(offset)
    elif alike := [i for i, whole in enumerate(x.split(sites, dim=1)) if _rounding(parts[i], whole)]:
        raise ConfigError(f"--normalise {name}: nothing varies in {len(x)} rows of site {alike[0]}; expected none")
    elif name == "whiten":
        covariance = (x - offset).T @ (x - offset) / len(x)
        values, vectors = torch.linalg.eigh(covariance)
        roots = (values.clamp_min(0) + RIDGE * values.mean()).sqrt()
        matrix, inverse = (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T
    else:
        scales = [(part.shape[1] / part.square().sum(1).mean()).sqrt().expand(part.shape[1]) for part in parts]
        matrix = torch.cat(scales)
        inverse = 1 / matrix
    return Affine(*(tensor.float().contiguous() for tensor in (offset, matrix, inverse)))


def _rounding(part: Tensor, whole: Tensor) -> bool:
    """Whether the rows, with their mean subtracted, are zero or only rounding errors."""
    return bool(part.square().mean() <= 1e-12 * whole.square().mean())


class TokenStatistics(NamedTuple):
    """What undoes layer norm for every token: x' · deviation + mean (Gao et al. 2024, their code) [N, 1]."""

    mean: Tensor
    deviation: Tensor
    """Unbiased, without the 1e-5 that keeps the division safe."""


def layer_norm(x: Tensor) -> tuple[Tensor, TokenStatistics]:
    """Every row of x [N, d], minus its mean, divided by its standard deviation (unbiased, plus 1e-5)."""
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (deviation + LAYER_NORM_EPS), TokenStatistics(mean, deviation)


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    return x * matrix if matrix.ndim == 1 else x @ matrix
