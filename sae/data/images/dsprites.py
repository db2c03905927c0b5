"""dSprites-like images: one white shape on black, of every combination of five factors, drawn when asked for.

The factors and the conventions are those of dSprites (Matthey et al. 2017); the outlines are our own, so the images are
like it and not the data set itself. A pixel is white where its centre lies inside the shape:

    u = (cos θ · dx - sin θ · dy) / s,  v = (sin θ · dx + cos θ · dy) / s    dx, dy: pixel centre - shape's centre

with v downwards, on a canvas of 64 by 64. Smaller images sample the same canvas at fewer points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sae.data.images.base import Factors, ImageSet, check_option, every_combination

CANVAS = 64
FACTORS = Factors(("shape", "scale", "orientation", "x", "y"), (3, 6, 40, 32, 32))
SHAPES = ("square", "ellipse", "heart")
SCALES = torch.from_numpy(np.linspace(0.5, 1, 6))
ORIENTATIONS = torch.from_numpy(np.linspace(0, 2 * math.pi, 40))  # the last one is the first again, as in dSprites
CENTRES = torch.from_numpy(16 + 32 * np.linspace(0, 1, 32))
# no shape reaches further from its centre than the square's corner, in canvas units
REACH = 9.6 * math.sqrt(2)
CHUNK = 256  # images drawn at a time, so that the boxes stay in the processor's cache


def dsprites(size: int = CANVAS) -> ImageSet:
    """All 737,280 images of 1 x size x size, pixels 0 or 1; labels are the shapes."""
    check_option(8 <= size <= 256, "size", size, "8 to 256 pixels")
    return every_combination("dsprites", "dSprites", (1, size, size), FACTORS, SHAPES, lambda v: draw(v, size))


def draw(values: Tensor, size: int = CANVAS) -> Tensor:
    """Factor values int64 [n, 5] -> images float32 [n, size·size] of zeros and ones."""
    images = torch.zeros(len(values), size, size)
    for shape, inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        for rows in (values[:, 0] == shape).nonzero()[:, 0].split(CHUNK):
            _draw_shape(images, rows, values[rows], inside)
    return images.flatten(1)


def _draw_shape(images: Tensor, rows: Tensor, values: Tensor, inside: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Draw images `rows`, all of one shape, looking only at the box of pixels that the shape can reach."""
    size = images.shape[1]
    scale, angle = SCALES[values[:, 1], None, None], ORIENTATIONS[values[:, 2], None, None]
    x, y = CENTRES[values[:, 3], None], CENTRES[values[:, 4], None]
    pixel = CANVAS / size
    half = math.ceil(REACH / pixel)
    around = torch.arange(-half, half + 1)
    # at small sizes the box reaches over the edge: there it draws the last pixels twice, alike
    columns, lines = (((centre / pixel).long() + around).clamp(0, size - 1) for centre in (x, y))
    dx = ((columns + 0.5) * pixel - x)[:, None, :]
    dy = ((lines + 0.5) * pixel - y)[:, :, None]
    cos, sin = angle.cos(), angle.sin()
    white = inside((cos * dx - sin * dy) / scale, (sin * dx + cos * dy) / scale)
    images[rows[:, None, None], lines[:, :, None], columns[:, None, :]] = white.float()


def _in_square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) <= 9.6


def _in_ellipse(u: Tensor, v: Tensor) -> Tensor:
    return (u / 12.8).square() + (v / 7.2).square() <= 1


def _in_heart(u: Tensor, v: Tensor) -> Tensor:
    """Two lobes, and a body whose half width falls from 9.593 to 0."""
    u = u.abs()
    lobes = (u - 4.781).square() + (v + 4.413).square() <= 4.812**2
    t = (v + 4.413) / 12.636
    # below t = 0 the power is not a number; the comparison with v leaves those points out
    body = (v >= -4.413) & (v <= 8.223) & (u <= 9.593 * (1 - t.clamp_min(0) ** 1.709))
    return lobes | body
