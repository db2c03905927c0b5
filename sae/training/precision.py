"""The precision in which a run's products are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sae.config import ConfigError, OptimConfig


def precision(optim: OptimConfig, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of products on a device, and how those of float32 are made, for `float32_products`.

    Raises:
        ConfigError: tf32 without a GPU.
    """
    compute = optim.compute if optim.compute != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    if compute != "tf32":
        return getattr(torch, compute), torch.get_float32_matmul_precision()
    if device.type != "cuda":
        raise ConfigError(f"--compute tf32: expected a GPU, whose products it is for; the device is {device}")
    return torch.float32, "high"


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Multiply float32 matrices in a precision of `torch.set_float32_matmul_precision`, inside the block alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
