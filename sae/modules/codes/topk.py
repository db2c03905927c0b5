"""Codes that keep the largest pre-activations: of a token, or of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes.base import FixedK, register
from sae.modules.codes.jumprelu import JumpReLU
from sae_kernels import SparseCodes, batch_topk_encode, topk_encode


@register
class TopK(FixedK):
    """f = relu(topk(W (x - b_pre) + b)) (Gao et al. 2024, eq. 3)."""

    name = "topk"
    plain = True
    steady = True

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Rectangular codes [N, k]."""
        return topk_encode(x, W_enc, b_enc, self.k, b_pre)


@register
class BatchTopK(FixedK):
    """f = relu of the N k largest of the batch's pre-activations W (x - b_pre) + b (Bussmann et al. 2024).

    A token's code depends on the rest of its batch, so a JumpReLU is saved instead, with one threshold for all latents:
    the one at which the inputs it is fitted to have k active latents a token.
    """

    name = "batchtopk"
    plain = True
    settles = True

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self._guess: float | None = None  # at the smallest value kept; saves time and changes nothing

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """CSR with N k entries."""
        codes = batch_topk_encode(x, W_enc, b_enc, self.k, b_pre, self._guess)
        if x.device.type == "cpu" and codes.values.numel():
            self._guess = codes.values.detach().min().item()
        return codes

    def settled(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> JumpReLU:
        smallest = batch_topk_encode(x, W_enc, b_enc, self.k, b_pre).values.detach().float().min()
        code = JumpReLU(W_enc.shape[0])
        with torch.no_grad():
            # the smallest value kept still exceeds it; never below zero, where relu would have cut
            code.theta.fill_(max(0.0, torch.nextafter(smallest, torch.tensor(-torch.inf, device=x.device)).item()))
        return code
