"""Images side by side.

draw_rows({"Original": x, "Reconstruction": y, "Error": diverging(x - y, shape)}, shape)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.book.pictures.style import SMALL


def tiled(images: Tensor, shape: Sequence[int], columns: int, *, gap: int = 1) -> np.ndarray:
    """Images [n, C·H·W], pixels in [0, 1], as one picture [rows, columns, 3] with white gaps."""
    channels, height, width = shape
    rows = -(-len(images) // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.float32)
    pictures = images.detach().cpu().float().clamp(0, 1).view(-1, channels, height, width).permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = picture  # grey ones are repeated over the colours
    return canvas


def coloured(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images [n, C·H·W] as [n, 3·H·W], so that grey ones can stand beside coloured ones."""
    pixels = images.detach().cpu().float().view(len(images), *shape)
    return pixels.expand(-1, 3, -1, -1).flatten(1)


def draw_rows(
    rows: Mapping[str, Tensor], shape: Sequence[int], *, headings: Sequence[str] = (), title: str = "", x: str = ""
) -> Figure:
    """A labelled row of images for every name.

    Args:
        rows: [n, C·H·W] by name; coloured ones [n, 3·H·W] may stand among grey ones.
        shape: [C, H, W].
        headings: over the columns.
        title: over the picture.
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
    figure = Figure(figsize=(side * columns + 1.8, side * len(rows) * height / width + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], list(rows), fontsize=SMALL)
    places = [i * (width + gap) + (width - 1) / 2 for i in range(len(headings))]
    axis.set_xticks(places, list(headings), fontsize=SMALL - 1)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(x, fontsize=SMALL)
    axis.tick_params(length=0)
    _without_frame(figure, title)
    return figure


def draw_tiles(
    images: Tensor,
    shape: Sequence[int],
    columns: int,
    title: str = "",
    *,
    x: str = "",
    y: str = "",
    gap: int = 1,
    inches: float = 6.0,
) -> Figure:
    """Images [n, C·H·W], or coloured ones, in a rectangle `inches` wide; `x` and `y` name what changes along it."""
    height, width = shape[1:]
    canvas = tiled(images, (images.shape[1] // (height * width), height, width), columns, gap=gap)
    figure = Figure(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1] + 0.3), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(x, fontsize=SMALL)
    axis.set_ylabel(y, fontsize=SMALL)
    _without_frame(figure, title)
    return figure


def _without_frame(figure: Figure, title: str) -> None:
    for axis in figure.axes:
        for side in axis.spines.values():
            side.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=SMALL + 0.5)
