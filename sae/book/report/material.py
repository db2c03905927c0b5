"""The images, codes and numbers behind the sections of an image run's page, computed once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.base.colours import diverging
from sae.data.images import ImageSet
from sae.evaluation.images import evaluate_images
from sae.evaluation.variational import Activity, activity, moments
from sae.models.saved import read_report
from sae.modules.codes import Gaussian, Identity, Quantised, Sigmoid
from sae.runs.images import ImageRun, decode_dense, dense_codes

Family = Literal["gaussian", "quantised", "rate", "dense", "sparse"]
FAMILIES: dict[type, Family] = {
    Gaussian: "gaussian",
    Quantised: "quantised",
    Sigmoid: "rate",
    Identity: "dense",
}
"""The kind of a run's code, on which its sections depend; all others are sparse."""
IMAGES = 2000  # held-out images behind pictures and their numbers
CHUNK = 512


class Material:
    """A run's held-out images with their codes, and the run's numbers.

    Args:
        run: an opened run.
    """

    def __init__(self, run: ImageRun) -> None:
        self.run, self.model, self.vision, self.shape = run, run.model, run.vision, run.shape
        self.heldout: ImageSet = run.images("heldout", limit=IMAGES)
        self.family: Family = FAMILIES.get(type(run.model.code), "sparse")

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The run's eval.json, made now unless it exists."""
        path: Path = self.run.folder / "eval.json"
        return read_report(self.run.folder, path.name) if path.exists() else evaluate_images(self.run.folder)

    @cached_property
    def x(self) -> Tensor:
        """Held-out images [n, D]."""
        return self.heldout.render(torch.arange(self.heldout.count))

    @cached_property
    def codes(self) -> Tensor:
        """Their codes [n, P F]: means, if the code is random."""
        return dense_codes(self.model, self.x)

    @cached_property
    def reconstruction(self) -> Tensor:
        """Their reconstructions [n, D]."""
        with torch.no_grad():
            return torch.cat([self.model(part).reconstruction for part in self.x.split(CHUNK)])

    @cached_property
    def activity(self) -> Activity:
        """KL and variance of the latents of a Gaussian code."""
        return activity(*moments(self.model, self.x))

    @cached_property
    def firing(self) -> Tensor:
        """Share of the images in which every latent is not zero, float64 [F]."""
        return (self.codes != 0).double().mean(0)

    @property
    def decodes_codes(self) -> bool:
        """Whether a code alone gives an image (layer norm needs the input's mean and deviation as well)."""
        return not self.model.per_token_norm

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n]."""
        return None if self.heldout.labels is None else self.heldout.labels.numpy()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of all label numbers."""
        if self.heldout.labels is None:
            return ()
        return self.heldout.label_names or tuple(str(n) for n in range(int(self.heldout.labels.max()) + 1))

    @cached_property
    def ranking(self) -> tuple[Tensor, str]:
        """How much every latent carries, [F], and the measure: KL for Gaussian codes, else variance over images."""
        if self.family == "gaussian":
            return self.activity.kl, "KL (nats)"
        return self.codes.var(0), "variance"

    @cached_property
    def signed(self) -> float | None:
        """Largest magnitude of a pixel, if pixels are not in [0, 1]."""
        return self.x.abs().max().item() if self.x.min() < 0 or self.x.max() > 1 else None

    def look(self, images: Tensor) -> Tensor:
        """Images [n, D] as they are shown: unchanged, or in two colours if pixels have a sign."""
        return images if self.signed is None else diverging(images, self.shape, limit=self.signed)

    def decoded(self, codes: Tensor) -> Tensor:
        """Codes [n, P F] -> images [n, D]."""
        return decode_dense(self.model, codes)
