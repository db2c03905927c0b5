"""Images of a run, and its atoms as images, as PNG files.

pictures = Pictures(Path("runs/digits"), store.info)
pictures.image(17)                     # as it was collected
pictures.atom(3, strength=2.5)         # what the latent adds to an image
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sae.features.collect.image_subject import provenance_of
from sae.features.store.keys import FeatureError
from sae.runs.images import decode_dense, open_image_run


class Pictures:
    """The pictures of a run on images. Safe to use from several threads.

    Args:
        folder: run folder.
        info: `FeatureStore.info` of its features.

    Raises:
        FeatureError: the images have changed since the features were collected.
        ConfigError, CorruptError, DataError: the run or its images cannot be used.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.revision = info["revision"]
        self.run = open_image_run(folder)
        self.images = self.run.images(info["split"])
        if provenance_of(self.images) != info["images"]:
            raise FeatureError(
                f"{folder}: its images have changed since the features were collected; collect again: sae features RUN"
            )
        self.signed = self.images.atoms is not None
        """Whether pixels are real numbers and not in [0, 1]."""
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return self.images.count

    def image(self, document: int) -> bytes:
        """An image of the set."""
        with self._lock:
            return self._png(self.images.render(torch.tensor([document])), signed=self.signed)

    def atom(self, latent: int, strength: float) -> bytes:
        """What a latent of this strength adds to the decoded code of zeros, on a diverging scale of its own.

        An atom of a codebook is put in all places and decoded: no code is empty, so there is nothing to compare with.
        """
        model = self.run.model
        codes = torch.zeros(2, model.positions, model.width)
        codes[0, :, latent] = strength
        with self._lock:
            shown, silent = decode_dense(model, codes.flatten(1)).split(1)
        return self._png(shown, signed=self.signed) if model.positions > 1 else self._png(shown - silent, signed=True)

    def _png(self, pixels: Tensor, *, signed: bool) -> bytes:
        """One image [1, D] as a PNG file of its own size."""
        from sae.base.colours import diverging  # late: matplotlib is slow to import, and runs on text do without

        channels, height, width = self.run.shape
        if signed:
            pixels, channels = diverging(pixels, self.run.shape), 3
        levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).view(channels, height, width)
        array: np.ndarray = levels.permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        Image.fromarray(array[..., 0] if channels == 1 else array).save(stream, "PNG", optimize=True)
        return stream.getvalue()
