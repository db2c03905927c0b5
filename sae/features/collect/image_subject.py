"""Images as the subject of a pass: an image is a document, every row of its code a token called after its label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.config import CollectConfig, ConfigError
from sae.data.images import ImageSet
from sae.features.collect.subject import Mark, Read, Source, Step
from sae.features.store.documents import Tokens
from sae.features.store.lens import Lens
from sae.features.store.text import Vocabulary
from sae.models.stems import ConvolutionalStem, Stem, TwoLevelStem
from sae.modules.codes import Code, Gaussian, Identity
from sae.runs.images import open_image_run

SIGNED = (Identity, Gaussian)
UNLABELLED = "image"
IMAGES, ROWS = 256, 8192
"""Most images, and about the most rows of codes, in one step."""


class ImageSubject:
    """A run on images; see `Subject`.

    Raises:
        ConfigError, CorruptError, DataError: the run, its images or a setting cannot be used.
    """

    def __init__(self, run: str | Path, config: CollectConfig, device: torch.device) -> None:
        for name in ("dataset", "text_field", "store"):
            if (given := getattr(config, name)) is not None:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {given}: {run} is collected over its own images; leave --{flag} out")
        self.run, self.config = open_image_run(run, device=device), config
        check_code(self.run.model.code, f"{run}: --variant {self.run.vision.variant}")
        self.folder, self.model = self.run.folder, self.run.model
        self.images = self.run.images(config.split)
        self.limit = min(config.tokens, self.images.count * self.model.positions)

    def identity(self) -> dict[str, Any]:
        """See `Subject`."""
        return {
            "weights": self.run.record["autoencoder"]["sha256"],
            "dataset": self.run.config.images.data,
            "split": self.config.split,
            "seed": self.config.seed,
            "images": provenance_of(self.images),
        }

    def info(self) -> dict[str, Any]:
        """See `Subject`; also "shape" [C, H, W], "positions", "grids" (see `grids_of`), "labels" (whether any)."""
        return {
            "kind": "image",
            "model": self.run.vision.variant,
            "site": "pixels",
            "shape": list(self.run.shape),
            "positions": self.model.positions,
            "grids": grids_of(self.model.stem),
            "labels": self.images.labels is not None,
        }

    def vocabulary(self) -> Vocabulary:
        """See `Subject`; the labels, or `UNLABELLED` alone."""
        labels = self.images.labels
        if labels is None:
            return Vocabulary.of_bytes([UNLABELLED.encode()])
        names = self.images.label_names or [str(i) for i in range(int(labels.max()) + 1)]
        return Vocabulary.of_bytes([name.encode() for name in names])

    def opening(self) -> str:
        """See `Subject`; nothing, the images being the run's own."""
        return ""

    def source(self) -> Source:
        """See `Subject`."""
        return ImageSource(self.images, self.model.positions)

    def inputs_of(self, rows: Tensor) -> Tensor:
        """See `Subject`; the pixels."""
        return rows

    def prepare(self, lens: Lens) -> None:
        """See `Subject`; atoms of images speak for no tokens."""


class ImageSource:
    """Images in their order; a step is some whole ones, a mark [image, 0]."""

    def __init__(self, images: ImageSet, positions: int) -> None:
        self.images, self.positions = images, positions
        self.label = torch.zeros(images.count, dtype=torch.int64) if images.labels is None else images.labels

    def steps(self, mark: Mark) -> Iterator[Step]:
        """See `Source`."""
        together = max(1, min(IMAGES, ROWS // self.positions))
        for begin in range(mark[0], self.images.count, together):
            end = min(begin + together, self.images.count)

            def read(begin: int = begin, end: int = end) -> Read:
                image = torch.arange(begin, end)
                place = torch.arange(self.positions).repeat(end - begin)
                label, document = (t.repeat_interleave(self.positions) for t in (self.label[begin:end], image))
                tokens = Tokens(label, document, place, torch.zeros_like(place))
                return Read(self.images.render(image), tokens, tokens, {})

            yield Step((end - begin) * self.positions, [end, 0], None, read)


def check_code(code: Code, name: str) -> None:
    """Refuse codes whose values may be negative: nothing says where such a latent fires.

    Raises:
        ConfigError: it is one.
    """
    if isinstance(code, SIGNED):
        raise ConfigError(
            f"{name}: has a code that can be negative; features are counted for codes that never are (topk, relu, "
            "jumprelu, kl_sparse, vqvae, ...), and `sae image report` shows this one's latents"
        )


def provenance_of(images: ImageSet) -> dict[str, Any]:
    """What identifies the images, as JSON gives it back."""
    return json.loads(json.dumps(images.provenance))


def grids_of(stem: Stem | None) -> list[list[int]]:
    """Rows and columns of every feature map whose places are the rows of a code, in their order; none for one row."""
    if isinstance(stem, TwoLevelStem):
        return [list(level.map[1:]) for level in (stem.coarse, stem.fine)]
    return [list(stem.map[1:])] if isinstance(stem, ConvolutionalStem) and stem.rows else []
