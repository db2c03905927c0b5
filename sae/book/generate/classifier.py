"""A small classifier of labelled images: the fixed encoder in whose features generated samples are compared.

classifier = train_classifier(images.all(), images.labels, stem, classes=10, seed=0)
classifier.features(x)      # [N, 64]
classifier.classes(x)       # int64 [N]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sae.base import draws
from sae.book.generate.base import LAYERS, MAKER, StepsConfig, fit, minibatches, seeded
from sae.models.stems import Stem, layered

WIDTH = 64  # of the hidden layer
CHUNK = 1024  # samples at a time
STEPS = StepsConfig(steps=600, batch=128, lr=2e-3)


class Classifier(nn.Module):
    """Class logits V relu(W stem(x) + b) + c; the relu's output [N, d] are its features."""

    def __init__(self, stem: Stem, classes: int, seed: int) -> None:
        super().__init__()
        self.stem = stem
        stem.initialise(draws.generator(seed, MAKER))
        self.layers = seeded(lambda: layered((stem.dim, WIDTH, classes)), seed, LAYERS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [N, D] -> features [N, d] and logits [N, C]."""
        features = torch.relu(self.layers[0](self.stem(x)))
        return features, self.layers[1](features)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> features [N, d]."""
        return torch.cat([self(rows)[0] for rows in x.split(CHUNK)])

    @torch.no_grad()
    def classes(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> the likeliest class int64 [N]."""
        return torch.cat([self(rows)[1].argmax(1) for rows in x.split(CHUNK)])

    @torch.no_grad()
    def confidence(self, x: Tensor) -> Tensor:
        """Samples [N, D] -> the probability of the likeliest class [N]."""
        return torch.cat([self(rows)[1].softmax(1).amax(1) for rows in x.split(CHUNK)])


def train_classifier(x: Tensor, labels: Tensor, stem: Stem, *, classes: int, seed: int) -> Classifier:
    """Train on x [N, D] with labels int64 [N].

    Raises:
        ConfigError: fewer samples than a batch.
    """
    classifier = Classifier(stem, classes, seed)
    batches = minibatches(torch.arange(len(x)), STEPS, seed=seed)
    fit(classifier, (cross_entropy(classifier(x[rows])[1], labels[rows]) for rows, _ in batches), STEPS)
    return classifier
