"""Networks for diffusion: noisy rows x_t [N, D] and the time t/T [N] -> predictions [N, D]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from sae.config import ConfigError

FREQUENCIES = 16  # sines and cosines of the time
FOLD = 2  # side of the blocks of pixels that become channels


def embed_time(time: Tensor) -> Tensor:
    """Times [N] in [0, 1] -> sines and cosines of 1,000 times them, [N, 2 FREQUENCIES] (Ho et al. 2020, appendix B)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES) / FREQUENCIES)
    angles = 1000 * time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class MLPDenoiser(nn.Module):
    """Residual blocks h + W silu(V silu(norm(h)) + U e(t)) between two linear layers, for latents and small images."""

    def __init__(self, dim: int, hidden: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.times = nn.ModuleList(nn.Linear(2 * FREQUENCIES, hidden) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(blocks))
        self.first = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        _start_at_zero(self.write)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Noisy rows [N, D] and times [N] -> [N, D]."""
        h, embedded = self.read(x), embed_time(time)
        for norm, first, second, at in zip(self.norms, self.first, self.second, self.times, strict=True):
            h = h + second(silu(first(silu(norm(h))) + at(embedded)))
        return self.write(h)


class ConvolutionalDenoiser(nn.Module):
    """A two-level U-Net on images folded by `FOLD` (blocks of 2 x 2 pixels are channels), for 28 x 28 and the like.

    Args:
        shape: channels, rows, columns of an image.
        width: channels of the upper level; the lower has twice as many.

    Raises:
        ConfigError: sides that cannot be halved twice.
    """

    def __init__(self, shape: Sequence[int], width: int = 32) -> None:
        super().__init__()
        if any(side % (2 * FOLD) for side in shape[1:]):
            raise ConfigError(f"shape {tuple(shape)}: expected sides that are multiples of {2 * FOLD}; use MLPDenoiser")
        self.shape = tuple(shape)
        folded = shape[0] * FOLD**2
        self.read = nn.Conv2d(folded, width, 3, padding=1)
        self.upper = _Block(width, width)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.lower = nn.ModuleList([_Block(2 * width, 2 * width), _Block(2 * width, 2 * width)])
        self.grow = nn.Conv2d(2 * width, width, 1)
        self.joined = _Block(2 * width, width)
        self.write = nn.Conv2d(width, folded, 3, padding=1)
        _start_at_zero(self.write)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Noisy rows [N, D] and times [N] -> [N, D]."""
        embedded = embed_time(time)
        above = self.upper(self.read(pixel_unshuffle(x.view(-1, *self.shape), FOLD)), embedded)
        below = self.shrink(above)
        for block in self.lower:
            below = block(below, embedded)
        up = interpolate(self.grow(below), size=above.shape[2:])
        h = self.joined(torch.cat([above, up], 1), embedded)
        return pixel_shuffle(self.write(silu(h)), FOLD).flatten(1)


class _Block(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x))) + U e(t)))), 3 x 3."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(4, before), nn.GroupNorm(4, after)])
        self.convs = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)])
        self.time = nn.Linear(2 * FREQUENCIES, after)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.convs[0](silu(self.norms[0](x))) + self.time(embedded)[:, :, None, None]
        return self.skip(x) + self.convs[1](silu(self.norms[1](h)))


def _start_at_zero(layer: nn.Linear | nn.Conv2d) -> None:
    """With zero outputs, networks of every width start from the same loss."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
