"""The vector-quantised code: a token is its nearest atom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.modules.codes.base import Code, register
from sae.modules.dictionary import Dictionary
from sae_kernels import SparseCodes, topk_encode

SMOOTHING = 1e-5  # Laplace's, of the counts (van den Oord et al. 2017, appendix A.1)
RESET_BELOW = 0.02  # of an even share of the rows: an atom used less is put where a row is (Łańcucki et al. 2020)
COUNT, SUM = "count", "sum"


@register
class Quantised(Code):
    """f = 1[j = argmin_i ||x - w_i||²], so that x̂ = w_j (VQ-VAE: van den Oord et al. 2017, eq. 1).

    The nearest atom has the largest x·w_i - ||w_i||² / 2: a TopK of one over the atoms themselves. The gradient of the
    decoded atom is passed straight through to x (the stop-gradients of the paper are in the loss terms). With a
    `momentum` γ the atoms are moving averages of the rows nearest to them (appendix A.1); with 0 they learn by gradient
    from the term `codebook`. With `resets`, atoms nearest to hardly any row are moved to rows of the batch.
    """

    name = "quantised"
    tied = True
    biased = False
    learns = True
    count: Tensor
    sum: Tensor

    def __init__(self, width: int, dim: int, momentum: float = 0.99, resets: bool = True) -> None:
        super().__init__()
        self.width, self.dim, self.momentum, self.resets = width, dim, momentum, resets
        self.register_buffer(COUNT, torch.ones(width))
        self.register_buffer(SUM, torch.zeros(width, dim))

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Rectangular codes [N, 1]."""
        del b_enc, b_pre
        with torch.no_grad():
            return topk_encode(x.detach(), W_enc, -0.5 * W_enc.float().square().sum(1), 1)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """One, at the nearest atom."""
        return listed.with_values(torch.ones_like(listed.values))

    def pass_through(self, decoded: Tensor, x: Tensor) -> Tensor:
        """The atom, with its gradient passed to x."""
        return x + (decoded - x).detach()

    def describe(self) -> dict[str, Any]:
        names = ("name", "width", "dim", "momentum", "resets")
        return {name: getattr(self, name) for name in names}

    def rescaled(self, factors: Tensor) -> None:
        del factors  # an atom cannot be rescaled

    @torch.no_grad()
    def begin(self, x: Tensor, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Place atoms on rows of the first batches, drawn without repetition as long as there are enough."""
        order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(-(-self.width // len(x)))])
        dictionary.W.copy_(x[order[: self.width].to(x.device)])
        dictionary.b.zero_()
        self.count.fill_(1.0)
        self.sum.copy_(dictionary.W)

    @torch.no_grad()
    def learn(self, x: Tensor, codes: SparseCodes, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Update the moving averages of counts and sums, whose quotients are the atoms; move unused atoms to rows."""
        nearest = codes.indices.flatten()
        count = torch.zeros_like(self.count).index_add_(0, nearest, torch.ones_like(nearest, dtype=torch.float32))
        decay = self.momentum or 0.99  # with atoms learnt by gradient the counts still tell which are unused
        self.count.mul_(decay).add_(count, alpha=1 - decay)
        if self.momentum:
            total = torch.zeros_like(self.sum).index_add_(0, nearest, x.detach().float())
            self.sum.mul_(decay).add_(total, alpha=1 - decay)
            whole = self.count.sum()
            smooth = (self.count + SMOOTHING) / (whole + self.width * SMOOTHING) * whole
            dictionary.W.copy_(self.sum / smooth.unsqueeze(1))
        if not self.resets:
            return
        share = len(x) / self.width
        unused = (self.count < RESET_BELOW * share).unsqueeze(1)
        rows = x[torch.randint(len(x), (self.width,), generator=generator).to(x.device)].detach().float()
        dictionary.W.copy_(torch.where(unused, rows, dictionary.W))
        self.sum.copy_(torch.where(unused, rows * share, self.sum))
        self.count.copy_(torch.where(unused.squeeze(1), share, self.count))
