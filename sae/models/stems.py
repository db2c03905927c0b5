"""Stems: networks that embed an image before the linear encoder. Samples are flat rows [N, C·H·W].

stem = ConvolutionalStem([3, 64, 64], [32, 64, 128])
stem(x)                                  # [N, 8192]: 128 channels of 8 x 8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sae.config import ConfigError
from sae.modules.dictionary import start_linear

KERNEL, STRIDE, PADDING = 4, 2, 1  # halves or doubles a side exactly


class Network(nn.Module):
    """The base of stems and heads: a network between samples and rows of the dictionary's width."""

    name: str
    arguments: tuple[str, ...]
    """Attributes that the constructor takes by the same names."""
    dim: int
    """Width of the rows, d."""
    positions: int = 1
    """Rows a sample, P."""

    def describe(self) -> dict[str, Any]:
        """Its name and constructor arguments, as JSON values, from which `built` makes it again."""
        return {"name": self.name, **{argument: getattr(self, argument) for argument in self.arguments}}

    def initialise(self, generator: torch.Generator) -> None:
        """Initialise every linear and convolutional layer as PyTorch does, with draws from `generator`."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                # a transposed convolution's weight is [in, out, kernel, kernel]; PyTorch uses its second axis as well
                start_linear(layer.weight, layer.bias, fan_in=layer.weight[0].numel(), generator=generator)


class Stem(Network):
    """Embeds samples."""

    def forward(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> rows [N P, d]."""
        raise NotImplementedError


class MLPStem(Stem):
    """x -> Linear, ReLU for every hidden width (the textbook's 784 -> 256)."""

    name, arguments = "mlp", ("dim_in", "hidden")

    def __init__(self, dim_in: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.dim_in, self.hidden, self.dim = dim_in, list(hidden), hidden[-1]
        self.layers = layered([dim_in, *hidden])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class ConvolutionalStem(Stem):
    """Conv2d(kernel 4, stride 2, padding 1), ReLU for every number of channels: 3 x 64 x 64 -> 32 -> 64 -> 128 x 8 x 8.

    With `rows` = 0 the last feature map is flattened into one row; else a convolution of kernel 1 turns every place of
    it into a row of width `rows` (which a codebook quantises).
    """

    name, arguments = "convolutional", ("shape", "channels", "rows")

    def __init__(self, shape: Sequence[int], channels: Sequence[int], rows: int = 0) -> None:
        super().__init__()
        self.shape, self.channels, self.rows = list(shape), list(channels), rows
        self.map = map_shape(shape, channels)
        pairs = zip([shape[0], *channels[:-1]], channels, strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, KERNEL, STRIDE, PADDING) for a, b in pairs)
        depth, height, width = self.map
        self.to_rows = nn.Conv2d(depth, rows, 1) if rows else None
        self.dim, self.positions = (rows, height * width) if rows else (depth * height * width, 1)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature map [N, C, H, W] after every layer."""
        maps = []
        x = x.view(-1, *self.shape)
        for layer in self.layers:
            x = torch.relu(layer(x))
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        last = self.stages(x)[-1]
        return last.flatten(1) if self.to_rows is None else rearrange(self.to_rows(last), "n d h w -> (n h w) d")


class TwoLevelStem(Stem):
    """Rows of two feature maps, the coarse one before the fine one (VQ-VAE-2: Razavi et al. 2019, section 3.1).

    The fine map is the last convolution's, the coarse one a further halving of it. Unlike in the paper, the fine level
    does not read the coarse level's atoms.
    """

    name, arguments = "two_level", ("shape", "channels", "rows")

    def __init__(self, shape: Sequence[int], channels: Sequence[int], rows: int) -> None:
        super().__init__()
        self.shape, self.channels, self.rows, self.dim = list(shape), list(channels), rows, rows
        self.fine = ConvolutionalStem(shape, channels, rows)
        self.coarse = ConvolutionalStem(self.fine.map, [channels[-1]], rows)
        self.positions = self.fine.positions + self.coarse.positions

    def forward(self, x: Tensor) -> Tensor:
        last = self.fine.stages(x)[-1]
        assert self.fine.to_rows is not None
        fine = rearrange(self.fine.to_rows(last), "n d h w -> n (h w) d")
        coarse = rearrange(self.coarse(last.flatten(1)), "(n p) d -> n p d", n=len(x))
        return torch.cat([coarse, fine], dim=1).flatten(0, 1)


STEMS: dict[str, Callable[..., Stem]] = {cls.name: cls for cls in (MLPStem, ConvolutionalStem, TwoLevelStem)}


def map_shape(shape: Sequence[int], channels: Sequence[int]) -> list[int]:
    """Shape [C, H, W] of the last feature map.

    Raises:
        ConfigError: a side cannot be halved so often.
    """
    sides = []
    for side in shape[1:]:
        if side % STRIDE ** len(channels) or not channels:
            raise ConfigError(f"--channels {list(channels)}: a side of {side} cannot be halved {len(channels)} times")
        sides.append(side // STRIDE ** len(channels))
    return [channels[-1], *sides]


def layered(widths: Sequence[int]) -> nn.ModuleList:
    """Linear layers from each width to the next."""
    return nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
