"""Images side by side.

draw_rows({"Original": x, "Reconstruction": y, "Error": diverging(x - y, shape)}, shape)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from sae.pictures.charts import SMALL


def tiled(images: Tensor, shape: Sequence[int], columns: int, *, gap: int = 1) -> np.ndarray:
    """Images [n, C·H·W], pixels in [0, 1], as one picture [rows, columns, 3] with white gaps."""
    pictures = coloured(images, shape).clamp(0, 1).view(-1, 3, *shape[1:])
    pictures = pad(pictures, (0, gap, 0, gap), value=1.0)
    blank = torch.ones(-len(pictures) % columns, *pictures.shape[1:])
    canvas = rearrange(torch.cat([pictures, blank]), "(r c) rgb h w -> (r h) (c w) rgb", c=columns)
    return canvas[: canvas.shape[0] - gap, : canvas.shape[1] - gap].numpy()


def coloured(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images [n, C·H·W] as [n, 3·H·W], so that grey ones can stand beside coloured ones."""
    pixels = images.detach().cpu().float().view(len(images), *shape)
    return pixels.expand(-1, 3, -1, -1).flatten(1)


def draw_rows(rows: Mapping[str, Tensor], shape: Sequence[int], *, headings: Sequence[str] = (), x: str = "") -> Figure:
    """A labelled row of images for every name.

    Args:
        rows: [n, C·H·W] by name; coloured ones [n, 3·H·W] may stand among grey ones.
        shape: [C, H, W].
        headings: over the columns.
        x: what the headings are, with the unit.
    """
    columns = max(len(images) for images in rows.values())
    height, width = shape[1:]
    gap = max(1, round(height / 16))
    blank = torch.ones(columns, 3 * height * width)
    parts = []
    for images in rows.values():
        row = coloured(images, (images.shape[1] // (height * width), height, width))
        parts.append(torch.cat([row, blank[len(row) :]]))
    side = min(0.8, 9.0 / columns)  # inches an image
    canvas = tiled(torch.cat(parts), (3, height, width), columns, gap=gap)
    figure, axis = _show(canvas, side * columns + 1.8, side * len(rows) * height / width + 0.5)
    axis.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], list(rows), fontsize=SMALL)
    places = [i * (width + gap) + (width - 1) / 2 for i in range(len(headings))]
    axis.set_xticks(places, list(headings), fontsize=SMALL - 1)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(x, fontsize=SMALL)
    axis.tick_params(length=0)
    return figure


def draw_tiles(
    images: Tensor, shape: Sequence[int], columns: int, *, x: str = "", y: str = "", gap: int = 1, inches: float = 6.0
) -> Figure:
    """Images [n, C·H·W], or coloured ones, in a rectangle `inches` wide; `x` and `y` name what changes along it."""
    height, width = shape[1:]
    canvas = tiled(images, (images.shape[1] // (height * width), height, width), columns, gap=gap)
    figure, axis = _show(canvas, inches, inches * canvas.shape[0] / canvas.shape[1] + 0.3)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(x, fontsize=SMALL)
    axis.set_ylabel(y, fontsize=SMALL)
    return figure


def _show(canvas: np.ndarray, width: float, height: float) -> tuple[Figure, Axes]:
    """A picture without a frame in a figure of width x height inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.spines[:].set_visible(False)
    return figure, axis
