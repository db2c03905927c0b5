"""Codes: how a linear encoder's output becomes the latent code.

A code is given the encoder's weights and not its output, so that a sparse code can call a fused kernel that never
writes the N x F pre-activations. Codes are entries of `CODES`; `make_code` builds one from its saved description.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sae.config import unknown_choice
from sae_kernels import SparseCodes, topk_encode


class Code(nn.Module):
    """What every code offers; a module, because some have parameters."""

    sparse: bool
    """Whether gradients pass through the listed positive values alone, so that the fused step may be used."""

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """x [N, d], W_enc [F, d], b_enc [F], b_pre [d] or None (subtracted from x first) -> codes of N tokens."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What `make_code` needs to build this code again, as JSON values."""
        raise NotImplementedError

    def rescaled(self, factor: float) -> Code:
        """The same code for pre-activations multiplied by `factor`."""
        raise NotImplementedError


class Identity(Code):
    """f = W (x - b_pre) + b: every latent, dense (PCA, linear autoencoders, an untouched bottleneck)."""

    sparse = False

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; lists all F latents of every token."""
        values = nn.functional.linear(x if b_pre is None else x - b_pre, W_enc, b_enc.to(W_enc.dtype))
        indices = torch.arange(W_enc.shape[0], device=x.device).expand_as(values)
        return SparseCodes(values, indices, W_enc.shape[0])

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": "identity"}

    def rescaled(self, factor: float) -> Identity:
        """See `Code`."""
        del factor
        return self


class TopK(Code):
    """f = relu(topk(W (x - b_pre) + b)) (Gao et al. 2024, eq. 3)."""

    sparse = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; rectangular codes [N, k]."""
        return topk_encode(x, W_enc, b_enc, self.k, b_pre)

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": "topk", "k": self.k}

    def rescaled(self, factor: float) -> TopK:
        """See `Code`; the order of pre-activations does not change."""
        del factor
        return self


CODES: dict[str, Callable[..., Code]] = {"identity": Identity, "topk": TopK}


def make_code(description: dict[str, Any]) -> Code:
    """Build a code from what its `describe` gave.

    Raises:
        ConfigError: the name is unknown.
    """
    settings = dict(description)
    name = settings.pop("name")
    if name not in CODES:
        raise unknown_choice("code", name, CODES)
    return CODES[name](**settings)
