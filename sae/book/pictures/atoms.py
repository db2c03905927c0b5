"""The contribution of single atoms to an image.

x = contributions(model, strengths)                       # [F, C·H·W], signed
draw_atoms(x[order], shape)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base.colours import diverging
from sae.book.pictures.grids import draw_tiles
from sae.models.autoencoder import Autoencoder

CHUNK = 1024  # atoms decoded at a time


@torch.no_grad()
def contributions(model: Autoencoder, strengths: Tensor) -> Tensor:
    """show(b + s_j w_j) - show(b) for every atom: [F, C·H·W], signed; without a head, s_j w_j.

    Args:
        model: with one row a sample (no codebook).
        strengths: s [F], the code's value for each atom.

    Raises:
        ValueError: the model has several rows a sample.
    """
    if model.positions != 1:
        raise ValueError(f"expected one row a sample, got {model.positions}; see `codebook_images`")
    b = model.dictionary.b
    atoms = torch.cat([model.show(b + part) for part in (strengths.unsqueeze(1) * model.dictionary.W).split(CHUNK)])
    return atoms - model.show(b.unsqueeze(0))


@torch.no_grad()
def codebook_images(model: Autoencoder) -> Tensor:
    """Every atom of a codebook, in all places at once, decoded: [F, C·H·W]."""
    rows = model.dictionary.W.repeat_interleave(model.positions, dim=0)
    return torch.cat([model.show(part) for part in rows.split(CHUNK * model.positions)])


def draw_atoms(images: Tensor, shape: Sequence[int], *, columns: int = 16) -> Figure:
    """Signed images [n, C·H·W], purple above zero and orange below, each on its own scale."""
    columns = min(columns, len(images))
    return draw_tiles(
        diverging(images, shape, limit=images.abs().amax(1)), shape, columns, inches=min(7.5, 0.7 * columns)
    )
