"""Heads: networks from the dictionary's output to an image. The mirror images of the stems.

A head that squashes gives logits, whose sigmoid is the reconstruction: pixels lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sae.models.stems import KERNEL, PADDING, STRIDE, Network, layered, map_shape


class Head(Network):
    """Turns rows of the dictionary's output into samples."""

    squash: bool

    def forward(self, decoded: Tensor) -> Tensor:
        """The dictionary's output [N P, d] -> outputs [N, D]: logits where `squash`."""
        raise NotImplementedError


class MLPHead(Head):
    """ReLU, Linear for every hidden width, back to the pixels (256 -> 784); without hidden widths it only squashes."""

    name, arguments = "mlp", ("dim_out", "hidden", "squash")

    def __init__(self, dim_out: int, hidden: Sequence[int], squash: bool) -> None:
        super().__init__()
        self.dim_out, self.hidden, self.squash = dim_out, list(hidden), squash
        self.dim = hidden[0] if hidden else dim_out
        self.layers = layered([*hidden, dim_out])

    def forward(self, decoded: Tensor) -> Tensor:
        for layer in self.layers:
            decoded = layer(torch.relu(decoded))
        return decoded


class ConvolutionalHead(Head):
    """A feature map of `channels[-1]` channels, doubled once for each number of channels, back to the image's shape.

    A stage is ReLU and ConvTranspose2d(kernel 4, stride 2, padding 1), or, `upsampling`, ReLU, nearest-neighbour
    doubling and Conv2d(kernel 3, padding 1), which leaves no checkerboard (Odena et al. 2016). With `rows` > 0 a
    convolution of kernel 1 reads a row of that width for every place of the map.
    """

    name, arguments = "convolutional", ("shape", "channels", "squash", "upsampling", "rows")

    def __init__(
        self, shape: Sequence[int], channels: Sequence[int], squash: bool, upsampling: bool, rows: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.channels, self.rows = list(shape), list(channels), rows
        self.squash, self.upsampling = squash, upsampling
        self.map = map_shape(shape, channels)
        widths = [*reversed(channels), shape[0]]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) if upsampling else nn.ConvTranspose2d(a, b, KERNEL, STRIDE, PADDING)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        depth, height, width = self.map
        self.from_rows = nn.Conv2d(rows, depth, 1) if rows else None
        self.dim, self.positions = (rows, height * width) if rows else (depth * height * width, 1)

    def stages(self, decoded: Tensor) -> list[Tensor]:
        """The feature map [N, C, H, W] after every layer; the last one is the image."""
        _, height, width = self.map
        if self.from_rows is None:
            x = decoded.view(-1, *self.map)
        else:
            x = self.from_rows(rearrange(decoded, "(n h w) d -> n d h w", h=height, w=width))
        maps = []
        for layer in self.layers:
            x = torch.relu(x)
            x = doubled(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
            maps.append(x)
        return maps

    def forward(self, decoded: Tensor) -> Tensor:
        return self.stages(decoded)[-1].flatten(1)


def doubled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`layer` (kernel 3, padding 1) of x [N, C, H, W] doubled to its nearest neighbours, [N, C', 2H, 2W].

    Both at once are one transposed convolution of kernel 4, stride 2 and padding 1: those taps of the kernel that read
    the same pixel of x are added up, w'[t] = w[2 - t] + w[3 - t] along either axis (0 outside). It takes 4 products an
    output and channel in place of 9, and no doubled map is written.
    """
    taps = nn.functional.pad(layer.weight.flip(2, 3), (1, 1, 1, 1))
    taps = taps[:, :, 1:] + taps[:, :, :-1]
    taps = taps[..., 1:] + taps[..., :-1]
    return nn.functional.conv_transpose2d(x, taps.transpose(0, 1), layer.bias, STRIDE, PADDING)


class TwoLevelHead(Head):
    """Reads the coarse map's rows, then the fine map's; doubles the coarse map and adds it to the fine one."""

    name = "two_level"

    def __init__(
        self, shape: Sequence[int], channels: Sequence[int], squash: bool, upsampling: bool, rows: int
    ) -> None:
        super().__init__()
        self.fine = ConvolutionalHead(shape, channels, squash, upsampling, rows)
        self.coarse = ConvolutionalHead([rows, *self.fine.map[1:]], [channels[-1]], False, upsampling, rows)
        self.dim, self.squash = rows, squash
        self.positions = self.fine.positions + self.coarse.positions

    def forward(self, decoded: Tensor) -> Tensor:
        rows = rearrange(decoded, "(n p) d -> n p d", p=self.positions)
        coarse, fine = rows.split([self.coarse.positions, self.fine.positions], dim=1)
        up = rearrange(self.coarse.stages(coarse.flatten(0, 1))[-1], "n d h w -> n (h w) d")
        return self.fine((fine + up).flatten(0, 1))

    def describe(self) -> dict[str, Any]:
        return {**self.fine.describe(), "name": self.name}


HEADS: dict[str, Callable[..., Head]] = {cls.name: cls for cls in (MLPHead, ConvolutionalHead, TwoLevelHead)}
