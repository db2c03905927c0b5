"""A finished run on images, opened again: the autoencoder with its data and settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError, ImageDataConfig, ImageTrainConfig, VisionConfig
from sae.data.images import ImageSet, open_images
from sae.models.autoencoder import Autoencoder
from sae.models.vision import completed
from sae.runs.base import open_folder


class ImageRun(NamedTuple):
    """What the folder of a run on images holds."""

    folder: Path
    record: dict[str, Any]
    """config.json."""
    model: Autoencoder
    """The saved autoencoder, in inference form."""
    config: ImageTrainConfig
    """What it was trained with, every `auto` written out."""
    asked: ImageTrainConfig
    """The settings as they were given, with every `auto`."""
    shape: tuple[int, int, int]
    """Channels, rows, columns of an image."""

    @property
    def vision(self) -> VisionConfig:
        """The autoencoder's settings."""
        return self.config.vision

    def images(self, split: Literal["train", "heldout", "all"], *, limit: int | None = None) -> ImageSet:
        """The run's images: those it was trained on (with its labels alone), or all those held out."""
        images = open_split(self.config.images, split, limit=limit)
        return with_labels(images, self.config.only_label) if split == "train" else images


def open_image_run(run: str | Path, *, device: torch.device | str = "cpu") -> ImageRun:
    """Open the folder of a run on images.

    Raises:
        ConfigError, CorruptError: there is none, or it is of another kind.
    """
    folder, record, model, config = open_folder(run, "image", ImageTrainConfig, device=device)
    channels, height, width = record["data"]["shape"]
    shape = (channels, height, width)
    whole = dataclasses.replace(config, vision=completed(config.vision, shape))
    return ImageRun(folder, record, model, whole, config, shape)


def open_split(
    config: ImageDataConfig, split: Literal["train", "heldout", "all"], *, limit: int | None = None
) -> ImageSet:
    """The configured images; the configured limit is on training images."""
    if split == "train":
        limit = min((n for n in (limit, config.limit) if n is not None), default=None)
    return open_images(config.data, split=split, heldout=config.heldout, seed=config.split_seed, limit=limit)


def with_labels(images: ImageSet, only: str | None) -> ImageSet:
    """The images of some labels, named with commas; with a `!` in front, of all others.

    Raises:
        ConfigError: no labels, or one that is none of them.
    """
    if only is None:
        return images
    if images.labels is None:
        raise ConfigError(f"--only-label {only}: {images.name} has no labels")
    numbers = {name: number for number, name in enumerate(images.label_names)}
    numbers = numbers or {str(number): number for number in images.labels.unique().tolist()}
    asked = only.removeprefix("!").split(",")
    unknown = [name for name in asked if name not in numbers]
    if unknown:
        raise ConfigError(f"--only-label {only}: no label {unknown[0]!r} (known: {', '.join(numbers)})")
    inside = torch.isin(images.labels, torch.tensor([numbers[name] for name in asked]))
    return images.select((~inside if only.startswith("!") else inside).nonzero().squeeze(1))


@torch.no_grad()
def dense_codes(model: Autoencoder, x: Tensor, *, chunk: int = 1024) -> Tensor:
    """Codes of samples x [N, D] as one dense row a sample, float32 [N, P F]: means, where a code is a distribution."""
    parts = [model.encode(rows).to_dense().float().view(len(rows), -1) for rows in x.split(chunk)]
    return torch.cat(parts)


@torch.no_grad()
def decode_dense(model: Autoencoder, codes: Tensor, *, chunk: int = 1024) -> Tensor:
    """Dense codes [N, P F] -> images [N, D], in the units of the pixels."""
    rows = [part.reshape(-1, model.width) for part in codes.split(chunk)]
    return torch.cat([model.show(model.dictionary.decode_dense(part)) for part in rows])
