"""Encoder and dictionary stored in bfloat16 while they train; everything but the fused step reads them in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sae.models.autoencoder import Autoencoder


def matrices(model: Autoencoder) -> list[Tensor]:
    """The parameters that --weights stores in fewer bits."""
    return [model.W_enc, model.dictionary.W]


def store_as(model: Autoencoder, dtype: torch.dtype) -> None:
    """Store both matrices in a dtype; to bfloat16 they are rounded to the nearest."""
    for parameter in matrices(model):
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def in_float32(model: Autoencoder) -> Iterator[None]:
    """Hold both matrices in float32 inside the block; what it changes is rounded to the nearest at its end."""
    stored = [parameter.data for parameter in matrices(model)]
    if all(tensor.dtype == torch.float32 for tensor in stored):
        yield
        return
    store_as(model, torch.float32)
    try:
        yield
    finally:
        for parameter, tensor in zip(matrices(model), stored, strict=True):
            parameter.data = tensor.copy_(parameter.data)
