"""The judge of decoded images: a classifier of real ones, and the distance to the nearest training image.

judge = judge_of("mnist5k")
judge.classifier.classes(images), judge.nearest(images)
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sae.book.chapter.measure import Images, split_images
from sae.book.generate.classifier import CHUNK, Classifier, train_classifier
from sae.models.stems import MLPStem

HIDDEN = (128,)


class Judge(NamedTuple):
    """A classifier trained on the training images alone; samples are compared in its features."""

    classifier: Classifier
    train: Images
    heldout: Images

    @property
    def accuracy(self) -> float:
        """On held-out images."""
        return (self.classifier.classes(self.heldout.x) == self.heldout.labels).double().mean().item()

    def nearest(self, x: Tensor) -> Tensor:
        """Root mean squared difference a pixel between images [n, D] and their nearest training images, [n]."""
        rows = [torch.cdist(part, self.train.x).amin(1) for part in x.split(CHUNK)]
        return torch.cat(rows) / x.shape[1] ** 0.5


@functools.lru_cache(maxsize=2)
def judge_of(data: str) -> Judge:
    """The judge of a labelled set, cached.

    Raises:
        ConfigError: the set has no labels.
    """
    train, heldout = split_images(data)
    stem = MLPStem(train.x.shape[1], HIDDEN)
    return Judge(train_classifier(train.x, train.labels, stem, classes=len(train.names), seed=0), train, heldout)
