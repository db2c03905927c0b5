"""A small classifier of labelled images: the fixed encoder whose features generated samples are compared in.

classifier = train_classifier(images.all(), images.labels, stem, classes=10, seed=0)
classifier.features(x)      # [N, 64]
classifier.classes(x)       # int64 [N]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sae.base import draws
from sae.book.generate.base import LAYERS, MAKER, minibatches, seeded, set_rate
from sae.config import ConfigError
from sae.models.stems import Stem, layered
from sae.training.schedules import course

CHUNK = 1024  # samples at a time


class Classifier(nn.Module):
    """Class logits V relu(W stem(x) + b) + c; the relu's output [N, d] are its features.

    Raises:
        ConfigError: a stem with several rows a sample.
    """

    def __init__(self, stem: Stem, classes: int, width: int, seed: int) -> None:
        super().__init__()
        if stem.positions != 1:
            raise ConfigError(f"stem: expected one row a sample, got {stem.positions}")
        self.stem = stem
        stem.initialise(draws.generator(seed, MAKER))
        sizes = (stem.dim, width, classes)
        self.layers = seeded(lambda: layered(sizes), seed, LAYERS)

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
        """Samples [N, D] -> classes int64 [N]."""
        return torch.cat([self(rows)[1].argmax(1) for rows in x.split(CHUNK)])


def train_classifier(
    x: Tensor,
    labels: Tensor,
    stem: Stem,
    *,
    classes: int,
    width: int = 64,
    steps: int = 600,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int,
) -> Classifier:
    """Train on x [N, D] with labels int64 [N], by Adam whose rate falls to zero over the second half.

    Raises:
        ConfigError: fewer samples than a batch.
    """
    classifier = Classifier(stem, classes, width, seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    for step, (chosen, _) in enumerate(minibatches(torch.arange(len(x)), batch=batch, steps=steps, seed=seed)):
        loss = cross_entropy(classifier(x[chosen])[1], labels[chosen])
        set_rate(optimizer, lr * course(step, steps, warmup=0.05, decay=0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier
