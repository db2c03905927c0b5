"""Images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


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


def draw_rows(rows: dict[str, Tensor], shape: Sequence[int]) -> Figure:
    """A labelled row of images [n, D] for every name."""
    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(min(12.0, 0.62 * columns + 1.2), 0.62 * len(rows) + 0.2))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(tiled(images, shape, len(images)), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for side in axis.spines.values():
            side.set_visible(False)
    return figure


def draw_tiles(images: Tensor, shape: Sequence[int], columns: int, title: str = "") -> Figure:
    """Images [n, D] in a rectangle."""
    canvas = tiled(images, shape, columns)
    figure = Figure(figsize=(6.0, 6.0 * canvas.shape[0] / canvas.shape[1] + 0.3))
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
    return figure
