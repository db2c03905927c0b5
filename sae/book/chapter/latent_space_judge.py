"""Who judges decoded images: a classifier of the real ones, its confidence, its hidden layer, and the nearest image.

judge = judge_of("mnist5k")
judge.classes(images), judge.confidence(images), judge.features(images)
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
    """A classifier trained on the training images alone."""

    classifier: Classifier
    train: Images
    held: Images

    @property
    def accuracy(self) -> float:
        """On held-out images."""
        return (self.classes(self.held.x) == self.held.labels).double().mean().item()

    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class of images [n, D], int64 [n]."""
        return self.classifier.classes(x)

    @torch.no_grad()
    def confidence(self, x: Tensor) -> Tensor:
        """The probability of that class, [n]."""
        return torch.cat([self.classifier(rows)[1].softmax(1).amax(1) for rows in x.split(CHUNK)])

    def features(self, x: Tensor) -> Tensor:
        """What the classifier's last layer reads [n, d]: the fixed encoder in which samples are compared."""
        return self.classifier.features(x)

    def nearest(self, x: Tensor) -> Tensor:
        """Root mean squared difference a pixel to the nearest training image, [n]."""
        rows = [torch.cdist(part, self.train.x).amin(1) for part in x.split(CHUNK)]
        return torch.cat(rows) / x.shape[1] ** 0.5


@functools.lru_cache(maxsize=2)
def judge_of(data: str) -> Judge:
    """The judge of a labelled set; the same call trains nothing anew.

    Raises:
        ConfigError: the set has no labels.
    """
    train, held = split_images(data)
    stem = MLPStem(train.x.shape[1], HIDDEN)
    return Judge(train_classifier(train.x, train.labels, stem, classes=len(train.names), seed=0), train, held)
