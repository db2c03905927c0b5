"""Codes that act on each latent by itself, without a threshold: identity, relu and sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes.base import Code, above, dense, register
from sae_kernels import SparseCodes


@register
class Identity(Code):
    """f = W (x - b_pre) + b: every latent, dense (PCA, linear autoencoders, an untouched bottleneck)."""

    name = "identity"
    sparse = False

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Lists all F latents of every token."""
        return dense(x, W_enc, b_enc, b_pre)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        return listed

    def rescaled(self, factors: Tensor) -> Identity:
        del factors
        return self


@register
class ReLU(Code):
    """f = relu(W (x - b_pre) + b) (Bricken et al. 2023)."""

    name = "relu"

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """CSR, or dense while more than a tenth of all latents fire."""
        return above(self, x, W_enc, b_enc, b_pre, 0.0)

    def rescaled(self, factors: Tensor) -> ReLU:
        del factors
        return self


@register
class Sigmoid(Code):
    """f = σ(W (x - b_pre) + b): every latent, between 0 and 1 (sparse autoencoder by a firing rate: Ng 2011)."""

    name = "sigmoid"
    sparse = False

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Lists all F latents of every token."""
        return dense(x, W_enc, b_enc, b_pre)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        return listed.with_values(torch.sigmoid(listed.values))

    def rescaled(self, factors: Tensor) -> None:
        del factors
