"""The one autoencoder: encoder (linear) -> code -> dictionary (linear)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae.modules.codes import Code
from sae.modules.dictionary import Dictionary
from sae.modules.normalise import Affine, layer_norm
from sae_kernels import SparseCodes


class Output(NamedTuple):
    """What `Autoencoder.forward` gives."""

    codes: SparseCodes
    """Latent codes of the N inputs."""
    reconstruction: Tensor
    """[N, d_out]."""


class Autoencoder(nn.Module):
    """f = code(W_enc (x - b_pre) + b_enc),  x̂ = Σ_j f_j w_j + b_dec (Bricken et al. 2023; Gao et al. 2024).

    W_enc [F, d] and the dictionary's atoms [F, d_out] are latent-major: row j belongs to latent j. Several sites are
    read and written side by side: a crosscoder (Lindsey et al. 2024) is this on concatenated activations, its encoder
    the sum over sites.

    Args:
        dim: width of the inputs, d.
        width: number of latents, F.
        code: what lies between encoder and dictionary; a tied one makes the encoder's rows the atoms themselves.
        dim_out: width of the reconstruction, d_out; d by default.
        transcodes: the reconstruction belongs to another place than the input, so b_pre is 0 and not b_dec.
        skip: adds W_skip x to the reconstruction, zero at the start (Paulo et al. 2025).
        per_token_norm: inputs go through layer norm, token by token, which is undone after decoding.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        code: Code,
        *,
        dim_out: int | None = None,
        transcodes: bool = False,
        skip: bool = False,
        per_token_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.width = dim, dim_out or dim, width
        self.transcodes, self.per_token_norm = transcodes, per_token_norm
        self.code: Code = code
        self.dictionary = Dictionary(width, self.dim_out)
        self.W_enc = self.dictionary.W if code.tied else nn.Parameter(torch.empty(width, dim))
        self.b_enc = nn.Parameter(torch.zeros(width), requires_grad=not code.tied)
        self.W_skip = nn.Parameter(torch.zeros(self.dim_out, dim)) if skip else None

    @property
    def b_pre(self) -> Tensor | None:
        """What is subtracted from the inputs before encoding [d]; None for a transcoder."""
        return None if self.transcodes else self.dictionary.b

    def initialise(self, generator: torch.Generator) -> None:
        """Random unit atoms, encoder equal to the dictionary, biases zero (Gao et al. 2024, appendix A.1).

        Where inputs and reconstruction differ in place, the encoder's directions are drawn by themselves.
        """
        self.dictionary.initialise(generator)
        with torch.no_grad():
            if not self.code.tied:
                self.W_enc.copy_(self.dictionary.W if not self.transcodes else _directions(self.W_enc, generator))
            self.b_enc.zero_()

    def encode(self, x: Tensor) -> SparseCodes:
        """Inputs [N, d] -> codes of N tokens over F latents.

        Raises:
            ValueError: another shape.
        """
        return self.code.activate(self.select(layer_norm(x)[0] if self.per_token_norm else x))

    def select(self, x: Tensor) -> SparseCodes:
        """Inputs [N, d], normalised already -> the pre-activations that the code lists."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected [N, {self.dim}], got {tuple(x.shape)}")
        if torch.is_autocast_enabled(x.device.type):
            # centred before it is rounded: activations share a large mean that would use up a short mantissa
            short = torch.get_autocast_dtype(x.device.type)
            centred = x if self.b_pre is None else x - self.b_pre
            return self.code.select(centred.to(short), self.W_enc.to(short), self.b_enc, None)
        return self.code.select(x, self.W_enc, self.b_enc, self.b_pre)

    def decode(self, codes: SparseCodes, x: Tensor | None = None) -> Tensor:
        """Codes of N tokens -> reconstruction [N, d_out].

        `x` [N, d] is what they were encoded from; needed where the reconstruction depends on more than the codes (a
        skip connection, layer norm).

        Raises:
            ValueError: x is needed and was not given.
        """
        out = self.dictionary.decode(codes)
        if self.W_skip is None and not self.per_token_norm:
            return out
        if x is None:
            raise ValueError("x: with a skip connection or layer norm, decode(codes, x) needs the inputs")
        if not self.per_token_norm:
            return self.add_skip(out, x)
        normed, statistics = layer_norm(x)
        return self.add_skip(out, normed) * statistics.deviation + statistics.mean

    def add_skip(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """reconstruction [N, d_out] + W_skip x, where there is a skip connection."""
        return reconstruction if self.W_skip is None else reconstruction + x @ self.W_skip.T

    def forward(self, x: Tensor) -> Output:
        """Inputs [N, d] -> codes and reconstruction [N, d_out]."""
        codes = self.encode(x)
        return Output(codes, self.decode(codes, x))

    @torch.no_grad()
    def like(self, code: Code) -> Autoencoder:
        """An autoencoder of this one's shape and weights with another code."""
        model = Autoencoder(
            self.dim,
            self.width,
            code,
            dim_out=self.dim_out,
            transcodes=self.transcodes,
            skip=self.W_skip is not None,
            per_token_norm=self.per_token_norm,
        ).to(self.W_enc.device)
        mine = {name: t for name, t in self.state_dict().items() if not name.startswith("code.")}
        model.load_state_dict(mine, strict=False)
        return model

    @torch.no_grad()
    def folded(self, inputs: Affine, targets: Affine) -> Autoencoder:
        """The same map before normalisation: `folded(x)` is `targets.undo(self(inputs.apply(x)))`.

        Atoms are brought back to unit norm, so that a latent's value is the length of its contribution in the units of
        the targets, where the code has such a form: pre-activations, thresholds and values all take up the old norm.
        A selection of the largest has it only where all norms are equal; else the atoms keep theirs.
        """
        norms = targets.atoms(self.dictionary.W).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        norms = norms.mean().expand_as(norms) if (norms.max() - norms.min()) <= 1e-5 * norms.max() else norms
        code = self.code.rescaled(norms)
        factors = torch.ones_like(norms) if code is None else norms
        model = self.like(code or self.code)
        model.dictionary.W.copy_(targets.atoms(self.dictionary.W) / factors.unsqueeze(1))
        model.dictionary.b.copy_(targets.undo(self.dictionary.b))
        W_enc = inputs.encoder(self.W_enc) * factors.unsqueeze(1)
        if self.code.tied:
            return model  # f = w·(s x) / s: unit atoms read what they write
        model.W_enc.copy_(W_enc)
        # self reads inputs.matrix (x - offset) - b_pre; the offset's part goes where the bias is
        shift = self.b_enc - (W_enc @ inputs.offset / factors if self.transcodes else 0)
        model.b_enc.copy_(shift * factors)
        if self.W_skip is not None and model.W_skip is not None:
            skip = targets.atoms(inputs.encoder(self.W_skip).T).T
            model.W_skip.copy_(skip)
            model.dictionary.b.sub_(skip @ inputs.offset)
        return model


def _directions(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)
