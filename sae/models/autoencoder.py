"""The one autoencoder: encoder (linear) -> code -> dictionary (linear)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae.modules.codes import Code
from sae.modules.dictionary import Dictionary
from sae_kernels import SparseCodes


class Output(NamedTuple):
    """What `Autoencoder.forward` gives."""

    codes: SparseCodes
    """Latent codes of the N inputs."""
    reconstruction: Tensor
    """[N, d_out]."""


class Autoencoder(nn.Module):
    """f = code(W_enc (x - b_dec) + b_enc),  x̂ = Σ_j f_j w_j + b_dec (Bricken et al. 2023; Gao et al. 2024).

    W_enc [F, d] and the dictionary's atoms [F, d] are latent-major: row j belongs to latent j.
    """

    def __init__(self, dim: int, width: int, code: Code) -> None:
        super().__init__()
        self.dim, self.dim_out, self.width = dim, dim, width
        self.code: Code = code
        self.W_enc = nn.Parameter(torch.empty(width, dim))
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.dictionary = Dictionary(width, dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Random unit atoms, encoder equal to the dictionary, biases zero (Gao et al. 2024, appendix A.1)."""
        self.dictionary.initialise(generator)
        with torch.no_grad():
            self.W_enc.copy_(self.dictionary.W)
            self.b_enc.zero_()

    def encode(self, x: Tensor) -> SparseCodes:
        """Inputs [N, d] -> codes of N tokens over F latents.

        Raises:
            ValueError: another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected [N, {self.dim}], got {tuple(x.shape)}")
        if torch.is_autocast_enabled(x.device.type):
            # centred before it is rounded: activations share a large mean that would use up a short mantissa
            short = torch.get_autocast_dtype(x.device.type)
            return self.code((x - self.dictionary.b).to(short), self.W_enc.to(short), self.b_enc, None)
        return self.code(x, self.W_enc, self.b_enc, self.dictionary.b)

    def decode(self, codes: SparseCodes) -> Tensor:
        """Codes of N tokens -> reconstruction [N, d]."""
        return self.dictionary.decode(codes)

    def forward(self, x: Tensor) -> Output:
        """Inputs [N, d] -> codes and reconstruction [N, d]."""
        codes = self.encode(x)
        return Output(codes, self.decode(codes))

    @torch.no_grad()
    def folded(self, scale: float) -> Autoencoder:
        """The same map for unscaled inputs: `folded(s)(x)` is `self(s x) / s`, with codes divided by s as well.

        Atoms keep unit norm, so that a folded latent's value is the length of its contribution in the units of x:
        s x = W_dec f + b_dec  <=>  x = W_dec (f/s) + b_dec/s, and pre/s = W_enc (x - b_dec/s) + b_enc/s.
        """
        model = Autoencoder(self.dim, self.width, self.code.rescaled(1 / scale))
        model.load_state_dict(self.state_dict(), strict=False)
        model.b_enc.div_(scale)
        model.dictionary.b.div_(scale)
        return model.to(self.W_enc.device)
