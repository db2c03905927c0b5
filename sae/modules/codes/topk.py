"""Codes that keep the largest pre-activations: of a token, or of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.modules.codes.base import Code, register, same
from sae.modules.codes.jumprelu import JumpReLU
from sae_kernels import SparseCodes, batch_topk_encode, topk_encode


@register
class TopK(Code):
    """f = relu(topk(W (x - b_pre) + b)) (Gao et al. 2024, eq. 3)."""

    name = "topk"
    plain = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; rectangular codes [N, k]."""
        return topk_encode(x, W_enc, b_enc, self.k, b_pre)

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": self.name, "k": self.k}

    def rescaled(self, factors: Tensor) -> TopK | None:
        """See `Code`; one factor for all leaves the order as it is."""
        return self if same(factors) else None


@register
class BatchTopK(Code):
    """f = relu of the N k largest of the batch's pre-activations W (x - b_pre) + b (Bussmann et al. 2024).

    A token's code depends on the tokens beside it, so what is saved is a JumpReLU with one threshold for all latents:
    the one at which the inputs that it is settled on have k active latents a token.
    """

    name = "batchtopk"
    plain = True
    settles = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self._guess: float | None = None  # of the smallest value kept; saves time and changes nothing

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; CSR with N k entries."""
        codes = batch_topk_encode(x, W_enc, b_enc, self.k, b_pre, self._guess)
        if x.device.type == "cpu" and codes.values.numel():
            self._guess = codes.values.detach().min().item()
        return codes

    def describe(self) -> dict[str, Any]:
        """See `Code`."""
        return {"name": self.name, "k": self.k}

    def rescaled(self, factors: Tensor) -> BatchTopK | None:
        """See `Code`."""
        return self if same(factors) else None

    def settled(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> JumpReLU:
        """See `Code`."""
        smallest = batch_topk_encode(x, W_enc, b_enc, self.k, b_pre).values.detach().float().min()
        code = JumpReLU(W_enc.shape[0])
        with torch.no_grad():
            # the smallest value kept still exceeds it; never below zero, where relu would have cut
            code.theta.fill_(max(0.0, torch.nextafter(smallest, torch.tensor(-torch.inf, device=x.device)).item()))
        return code
