"""A gate that decides which latents fire, and a magnitude for how strongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sae.modules.codes.base import Code, above, per_entry, register
from sae_kernels import SparseCodes


@register
class Gated(Code):
    """f = 1[π > 0] · relu(e^r π + s), π = W (x - b_pre) + b (Rajamanoharan et al. 2024a, eqs. 5 to 7).

    The paper's magnitude path e^r W (x - b_pre) + b_mag with shared rows is this one with s = b_mag - e^r b; r and s
    [F] start at 0. The gate has no gradient: π learns through the terms "gate_l1" and "gate_error".
    """

    name = "gated"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.r = nn.Parameter(torch.zeros(width))
        self.s = nn.Parameter(torch.zeros(width))

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """CSR with the entries whose gate is open, or dense while these are more than a tenth."""
        return above(self, x, W_enc, b_enc, b_pre, 0.0)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        gate = listed.values
        magnitude = torch.relu(per_entry(self.r, listed).exp() * gate + per_entry(self.s, listed))
        return listed.with_values(torch.where(gate > 0, magnitude, 0).to(gate.dtype))

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        self.r[latents] = 0
        self.s[latents] = 0

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "width": self.r.shape[0]}

    def rescaled(self, factors: Tensor) -> Gated:
        code = Gated(self.r.shape[0])
        code.r.data, code.s.data = self.r.detach().clone(), self.s.detach() * factors
        return code
