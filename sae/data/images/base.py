"""What every set of images is: a number of positions and a function that renders any of them as rows of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.data.rows import DataError

# largest tensor that a set is turned into as a whole, in bytes
WHOLE_LIMIT = 2 << 30
CHUNK = 1024  # images rendered at a time where all are asked for
Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factors:
    """The independent causes of an image; every combination of their values is one image of the full set."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Number of values of each."""

    @property
    def count(self) -> int:
        """Number of combinations."""
        return math.prod(self.sizes)

    def values(self, indices: Tensor) -> Tensor:
        """Values [n, K] of combinations int64 [n]; the last factor changes fastest, as in an array of these sizes."""
        return torch.stack(torch.unravel_index(indices, self.sizes), 1)

    def index_of(self, values: Tensor) -> Tensor:
        """Combination [n] of values int64 [n, K]: the inverse of `values`.

        Raises:
            ValueError: another number of factors, or a value that is not in range.
        """
        sizes = torch.tensor(self.sizes)
        if values.ndim != 2 or values.shape[1] != len(self.sizes):
            raise ValueError(f"values: expected [n, {len(self.sizes)}] for {self.names}, got {tuple(values.shape)}")
        if ((values < 0) | (values >= sizes)).any():
            raise ValueError(f"values: expected 0 <= value < {self.sizes} for {self.names}")
        strides = sizes.flip(0).cumprod(0).flip(0) // sizes
        return (values * strides).sum(1)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images by position, rendered when asked for.

    A view made by `select` numbers its images anew from 0; all else is as in the set it came from.
    """

    name: str
    shape: tuple[int, int, int]
    """Channels, rows, columns."""
    count: int
    render: Callable[[Tensor], Tensor]
    """Positions int64 [n] in this set -> images float32 [n, C·H·W], pixels in [0, 1] (`planted`: real numbers)."""
    provenance: dict[str, Any]
    """JSON values that identify the images: name, where from, SHA-256 where there is a file, split, seed."""
    labels: Tensor | None = None
    """int64 [count]."""
    label_names: tuple[str, ...] = ()
    factors: Factors | None = None
    factor_values: Callable[[Tensor], Tensor] | None = None
    """Positions int64 [n] -> values int64 [n, K]."""
    atoms: Tensor | None = None
    """True directions [G, C·H·W] (`planted`)."""

    @property
    def dim(self) -> int:
        """Numbers in one image, C·H·W."""
        return math.prod(self.shape)

    def select(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (int64 [n]), in that order, as a set of its own; nothing is rendered or copied."""
        indices = checked(indices, self.count)
        render, values = self.render, self.factor_values
        return replace(
            self,
            count=len(indices),
            render=lambda positions: render(indices[checked(positions, len(indices))]),
            labels=None if self.labels is None else self.labels[indices],
            factor_values=values and (lambda positions: values(indices[checked(positions, len(indices))])),
        )

    def all(self) -> Tensor:
        """Every image, float32 [count, C·H·W].

        Raises:
            DataError: they would take more than 2 GiB.
        """
        size = 4 * self.count * self.dim
        if size > WHOLE_LIMIT:
            raise DataError(
                f"{self.name}: all {self.count:,} images take {size / 2**30:.1f} GiB, over the limit of "
                f"{WHOLE_LIMIT / 2**30:.0f}; render them in batches, or take at most {WHOLE_LIMIT // 4 // self.dim:,}"
            )
        images = torch.empty(self.count, self.dim)
        for positions in torch.arange(self.count).split(CHUNK):
            images[positions] = self.render(positions)
        return images


def checked(indices: Tensor, count: int) -> Tensor:
    """`indices`, if they are positions in a set of `count` images (a negative one would wrap around quietly).

    Raises:
        IndexError: some are not.
    """
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise IndexError(f"positions: expected int64 [n], got {indices.dtype} {tuple(indices.shape)}")
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"positions: expected 0 to {count - 1}, got {int(indices.min())} to {int(indices.max())}")
    return indices


def check_option(good: bool, name: str, value: Any, expected: str) -> None:
    """Raise ConfigError, naming the option of an image set (`?name=value`), unless `good`."""
    if not good:
        raise ConfigError(f"option {name}={value}: expected {expected}")


def every_combination(
    name: str, like: str, shape: tuple[int, int, int], factors: Factors, names: tuple[str, ...], draw: Draw
) -> ImageSet:
    """An image for every combination of the factors, in order, drawn when asked for; labels are the factor "shape".

    Args:
        name: of the set.
        like: what the images are like.
        shape: channels, rows, columns.
        factors: with one called "shape".
        names: of the shapes.
        draw: factor values int64 [n, K] -> images float32 [n, C·H·W].
    """

    def values(positions: Tensor) -> Tensor:
        return factors.values(checked(positions, factors.count))

    return ImageSet(
        name=name,
        shape=shape,
        count=factors.count,
        render=lambda positions: draw(values(positions)),
        provenance={"name": name, "source": f"{like}-like, drawn by sparsight", "size": shape[1]},
        labels=values(torch.arange(factors.count))[:, factors.names.index("shape")],
        label_names=names,
        factors=factors,
        factor_values=values,
    )


def stored(pixels: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """A renderer of images held in memory: whole numbers [count, C·H·W], divided by `scale`."""

    def render(positions: Tensor) -> Tensor:
        return pixels[checked(positions, len(pixels))].float() / scale

    return render
