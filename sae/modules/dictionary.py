"""The dictionary: atoms, their norm rule, the bias, and the count of tokens since each latent fired."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sae_kernels import SparseCodes, sparse_decode


class Dictionary(nn.Module):
    """x̂ = Σ_j f_j w_j + b, with atoms w_j of unit norm (Bricken et al. 2023; Gao et al. 2024).

    Row j of W [F, d] is atom j. With `unit`, the optimizer's step keeps atoms at unit norm (`sae_kernels.adam_step`):
    a latent's value is the length of its contribution. Otherwise W is a plain linear layer, for codes that fix
    the scale of their latents (a Gaussian's prior, a sigmoid, a codebook). Dead latents are counted in tokens.
    """

    tokens_since_fired: Tensor

    def __init__(self, width: int, dim: int, *, unit: bool = True) -> None:
        super().__init__()
        self.unit = unit
        self.W = nn.Parameter(torch.empty(width, dim))
        self.b = nn.Parameter(torch.zeros(dim))
        self.register_buffer("tokens_since_fired", torch.zeros(width, dtype=torch.int64))

    def initialise(self, generator: torch.Generator) -> None:
        """Random unit atoms and bias zero, or a linear layer's usual initialisation; no latent is dead."""
        with torch.no_grad():
            if self.unit:
                directions = torch.randn(self.W.shape, generator=generator)
                self.W.copy_(directions / directions.norm(dim=1, keepdim=True))
                self.b.zero_()
            else:
                start_linear(self.W, self.b, fan_in=len(self.W), generator=generator)
            self.tokens_since_fired.zero_()

    def decode(self, codes: SparseCodes) -> Tensor:
        """Codes of N tokens -> reconstruction [N, d]; a dense product where every latent is listed."""
        if codes.in_order:
            return self.decode_dense(codes.values)
        return sparse_decode(codes, self.W.to(codes.values.dtype), self.b)

    def decode_dense(self, values: Tensor) -> Tensor:
        """Dense codes [N, F] -> reconstruction [N, d]."""
        return torch.addmm(self.b.to(values.dtype), values, self.W.to(values.dtype))

    @torch.no_grad()
    def note_fired(self, codes: SparseCodes) -> None:
        """Count this batch's tokens for every latent and restart the count of those that fired; no synchronisation."""
        self.tokens_since_fired += codes.tokens
        # mark where a latent fired; entries with value zero go to a spare slot instead of being filtered out,
        # because filtering would make the host wait for the device
        fired = torch.where(codes.values > 0, codes.indices, codes.width).flatten()
        mask = torch.zeros(codes.width + 1, dtype=torch.bool, device=fired.device).index_fill_(0, fired, True)
        self.tokens_since_fired.masked_fill_(mask[:-1], 0)

    def dead(self, after: int) -> Tensor:
        """Which latents have not fired for `after` tokens, bool [F]."""
        return self.tokens_since_fired >= after


@torch.no_grad()
def start_linear(weight: Tensor, bias: Tensor | None, *, fan_in: int, generator: torch.Generator) -> None:
    """Weights and bias uniform in ±1/sqrt(fan_in), as `torch.nn.Linear` initialises them (LeCun et al. 1998)."""
    bound = fan_in**-0.5
    for parameter in (weight, bias):
        if parameter is not None:
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
