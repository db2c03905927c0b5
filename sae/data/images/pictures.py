"""Encoded pictures (PNG, JPEG, whatever Pillow reads) of any size and kind, brought to one shape.

Every picture is turned upright (by its EXIF orientation), made grey or RGB, and resized and cropped about its centre to
one size. Transparent parts become white; of an animation the first frame is used. A picture that cannot be read is
refused by name.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sae.data.images.base import CHUNK, ImageSet, check_option, checked, stored
from sae.data.rows import DataError

LARGEST_OWN = 128  # pixels a side up to which pictures that share a size keep it
USUAL_SIZE = 64  # rows and columns otherwise
NAMED_FAULTS = 5  # unreadable pictures named in one error
MEMORY_LIMIT = 4 << 30  # bytes of pixels of one set
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_NO_RANGE = ("I", "F")  # 32 bits a pixel: nothing says which value is white
_GREY = ("1", "L", "LA", *_SIXTEEN_BITS)


class Picture(NamedTuple):
    """One encoded picture."""

    name: str
    """For messages."""
    content: Path | bytes


class Pictures(NamedTuple):
    """Numbered pictures, none of them decoded yet."""

    count: int
    get: Callable[[int], Picture]


class Form(NamedTuple):
    """What every picture is brought to."""

    rows: int
    columns: int
    channels: int
    """1 (grey) or 3 (RGB)."""


def choose_form(pictures: Pictures, size: int | None, channels: int | None) -> Form:
    """The form asked for; arguments that are None are chosen from the header of every picture.

    Args:
        size: rows and columns. None: the pictures' own size where all share one of at most 128 a side, else 64.
        channels: 1 or 3. None: 1 where all are grey, else 3.

    Raises:
        DataError: some pictures are unreadable (the first five are named).
        ConfigError: size or channels out of range.
    """
    check_option(size is None or size >= 1, "size", size, "1 or more pixels")
    check_option(channels in (None, 1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    sizes, grey, faults = set(), True, []
    for position in range(pictures.count):
        try:
            with _open(pictures.get(position)) as image:
                sizes.add(_upright_size(image))
                grey &= image.mode in _GREY
        except DataError as error:
            faults.append(str(error))
    if faults:
        more = f"\nand {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise DataError(
            f"{len(faults)} of {pictures.count} pictures are unreadable:\n" + "\n".join(faults[:NAMED_FAULTS]) + more
        )
    columns, rows = sizes.pop() if len(sizes) == 1 else (USUAL_SIZE, USUAL_SIZE)
    if size is not None:
        columns = rows = size
    elif max(columns, rows) > LARGEST_OWN:
        columns = rows = USUAL_SIZE
    return Form(rows, columns, channels or (1 if grey else 3))


def renderer(pictures: Pictures, form: Form) -> Callable[[Tensor], Tensor]:
    """A renderer that decodes pictures every time they are asked for."""

    def render(positions: Tensor) -> Tensor:
        images = [decode(pictures.get(i), form) for i in checked(positions, pictures.count).tolist()]
        if not images:
            return torch.empty(0, form.rows * form.columns * form.channels)
        return torch.from_numpy(np.stack(images)).flatten(1).float() / 255

    return render


def decode(picture: Picture, form: Form) -> np.ndarray:
    """The picture's pixels, uint8 [channels, rows, columns].

    Raises:
        DataError: it cannot be read to its end, or has 32 bits a pixel.
    """
    with _open(picture) as image:
        try:
            flat = _flatten(ImageOps.exif_transpose(image), "L" if form.channels == 1 else "RGB")
        except Exception as error:  # decoders share no base class of errors
            raise _unreadable(picture, error) from error
    fitted = np.asarray(ImageOps.fit(flat, (form.columns, form.rows)))
    return fitted.reshape(form.rows, form.columns, form.channels).transpose(2, 0, 1)


def in_memory(images: ImageSet) -> ImageSet:
    """The same images, decoded once and kept in memory, one byte a number.

    Raises:
        DataError: they take over 4 GiB, or one cannot be read to its end.
    """
    if (size := images.count * images.dim) > MEMORY_LIMIT:
        raise DataError(
            f"{images.name}: {images.count:,} images of {images.shape} take {size / 2**30:.1f} GiB, over the limit of "
            f"{MEMORY_LIMIT >> 30}; ask for a smaller size (`?size={max(images.shape[1] // 2, 1)}`) or for fewer "
            f"(limit={MEMORY_LIMIT // images.dim})"
        )
    pixels = torch.empty(images.count, images.dim, dtype=torch.uint8)
    for positions in torch.arange(images.count).split(CHUNK):
        pixels[positions] = (images.render(positions) * 255).round().byte()
    return replace(images, render=stored(pixels, 255))


def _open(picture: Picture) -> Image.Image:
    try:
        image = Image.open(picture.content if isinstance(picture.content, Path) else io.BytesIO(picture.content))
    except Exception as error:  # decoders share no base class of errors
        raise _unreadable(picture, error) from error
    if image.mode in _NO_RANGE:
        raise DataError(f"{picture.name}: its pixels have 32 bits (mode {image.mode!r}) and no known white; convert it")
    return image


def _unreadable(picture: Picture, error: Exception) -> DataError:
    return DataError(f"{picture.name}: not a readable picture ({type(error).__name__}: {error})")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Columns and rows once the picture stands upright (EXIF orientations 5 to 8 lie on their side)."""
    columns, rows = image.size
    # if the header has no EXIF, Pillow would decode a whole PNG to look for it behind the pixels
    noted = "exif" in image.info or image.format == "TIFF"
    return (rows, columns) if noted and image.getexif().get(0x0112) in (5, 6, 7, 8) else (columns, rows)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        # Pillow would cut 16 bits off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
