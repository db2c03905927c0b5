"""Made-up rows, autoencoders of known form, and their evaluations.

x, document = data()
metrics = evaluate(autoencoder(12, torch.eye(12)), x, document).metrics(**DRAWS)
"""

from __future__ import annotations

import pytest
import torch

from sae.data.packing import BEGINNING
from sae.evaluation import bootstrap, downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.reconstruction import Reconstruction
from sae.harvest.stream import Harvest
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Identity

DRAWS = {"resamples": 100, "seed": 0}


def data(tokens: int = 900, dim: int = 12, documents: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=draw)
    x = torch.randn(tokens, dim, generator=draw) @ mixing + 5.0
    return x, torch.arange(tokens) * documents // tokens


def autoencoder(dim: int, W: torch.Tensor, b: torch.Tensor | None = None, code=None) -> Autoencoder:
    """x̂ = W^T code(W (x - b)) + b."""
    model = Autoencoder(dim, W.shape[0], code or Identity())
    model.W_enc.data.copy_(W)
    model.dictionary.W.data.copy_(W)
    model.dictionary.b.data.copy_(torch.zeros(dim) if b is None else b)
    return model


def evaluate(model: Autoencoder, x: torch.Tensor, document: torch.Tensor, pca: PCA | None = None, size: int = 900):
    evaluation = Reconstruction(model, x.mean(0), pca)
    for rows, documents in zip(x.split(size), document.split(size), strict=True):
        evaluation.add(rows, rows, documents)
    return evaluation


def measured(harvest: Harvest, model: Autoencoder, mean: torch.Tensor) -> dict:
    batches = downstream.enough(harvest.contexts(BEGINNING), 1000)
    subject = downstream.Splice(model, harvest.sites, harvest.sites, mean)
    sums = downstream.measure(harvest, {"it": subject}, batches, lambda tokens: None)
    return downstream.metrics(sums["it"], **DRAWS)


def near(value):
    if isinstance(value, bootstrap.Interval):
        return pytest.approx(tuple(value), rel=1e-6, abs=1e-9)
    return value
