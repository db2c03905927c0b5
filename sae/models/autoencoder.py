"""The one autoencoder: stem -> encoder (linear) -> code -> dictionary (linear) -> head."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sae.modules.codes import Code
from sae.modules.dictionary import Dictionary, start_linear
from sae.modules.normalise import Affine, layer_norm
from sae_kernels import SparseCodes

if TYPE_CHECKING:
    from sae.models.heads import Head
    from sae.models.stems import Stem


class Output(NamedTuple):
    """What `Autoencoder.forward` returns."""

    codes: SparseCodes
    """Latent codes of the N inputs."""
    reconstruction: Tensor
    """[N, d_out]."""


class Encoded(NamedTuple):
    """The encoder's half of a forward pass."""

    embedded: Tensor
    """What the linear encoder read [N P, d]."""
    listed: SparseCodes
    """The pre-activations that the code lists."""
    codes: SparseCodes
    """Latent codes of N P rows, for the same entries."""


class Decoded(NamedTuple):
    """The decoder's half of a forward pass."""

    decoded: Tensor
    """What the dictionary made of the codes [N P, d]."""
    outputs: Tensor
    """What the head made of that [N, d_out]: logits, where it squashes them."""


class Autoencoder(nn.Module):
    """f = code(W_enc (x - b_pre) + b_enc),  x̂ = Σ_j f_j w_j + b_dec (Bricken et al. 2023; Gao et al. 2024).

    W_enc [F, d] and the dictionary's atoms [F, d_out] are latent-major: row j belongs to latent j. Several sites are
    read and written side by side: a crosscoder (Lindsey et al. 2024) is this on concatenated activations, its encoder
    the sum over sites. Image models add a stem before the encoder and a head after the dictionary, which turn a sample
    into P rows and back; there are then N P rows of codes.

    Args:
        dim: width of the inputs, d.
        width: number of latents, F.
        code: between encoder and dictionary; a tied code makes the encoder's rows the atoms themselves.
        dim_out: width of the reconstruction, d_out; d by default.
        transcodes: the target is another site than the input, so b_pre is 0 and not b_dec.
        skip: adds W_skip x to the reconstruction, initially zero (Paulo et al. 2025).
        per_token_norm: layer norm is applied to each input token, and undone after decoding.
        stem: embeds the inputs before the encoder reads them.
        head: turns the dictionary's output into the reconstruction.
        unit_atoms: whether atoms are kept at unit norm.

    Example:
        >>> import sae, torch
        >>> from sae.modules.codes import TopK
        >>> model = sae.Autoencoder(dim=16, width=64, code=TopK(4))
        >>> model.initialise(torch.Generator().manual_seed(0))
        >>> codes, reconstruction = model(torch.randn(3, 16))
        >>> codes.values.shape, reconstruction.shape
        (torch.Size([3, 4]), torch.Size([3, 16]))
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
        stem: Stem | None = None,
        head: Head | None = None,
        unit_atoms: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.width = dim, dim_out or dim, width
        self.transcodes, self.per_token_norm = transcodes, per_token_norm
        self.code: Code = code
        self.stem, self.head = stem, head
        self.dictionary = Dictionary(width, self.dim_out if head is None else head.dim, unit=unit_atoms)
        self.dictionary.b.requires_grad_(code.biased)
        read = dim if stem is None else stem.dim
        self.W_enc = self.dictionary.W if code.tied else nn.Parameter(torch.empty(code.rows * width, read))
        self.b_enc = nn.Parameter(torch.zeros(code.rows * width), requires_grad=not code.tied)
        self.W_skip = nn.Parameter(torch.zeros(self.dim_out, dim)) if skip else None

    @property
    def b_pre(self) -> Tensor | None:
        """Subtracted from the input before encoding [d]; None where encoder and dictionary use different spaces."""
        return None if self.transcodes or self.stem is not None or self.head is not None else self.dictionary.b

    @property
    def positions(self) -> int:
        """Rows a sample, P: the places of a feature map, or 1."""
        return 1 if self.stem is None else self.stem.positions

    def initialise(self, generator: torch.Generator) -> None:
        """Random unit atoms, encoder equal to the dictionary, biases zero (Gao et al. 2024, appendix A.1).

        A transcoder's encoder gets random directions of its own; an encoder behind a stem starts like a linear layer.
        """
        self.dictionary.initialise(generator)
        with torch.no_grad():
            self.b_enc.zero_()
            if self.stem is not None and not self.code.tied:
                start_linear(self.W_enc, self.b_enc, fan_in=self.W_enc.shape[1], generator=generator)
            elif not self.code.tied:
                alike = self.b_pre is not None and self.W_enc.shape == self.dictionary.W.shape
                self.W_enc.copy_(self.dictionary.W if alike else _directions(self.W_enc, generator))
        for part in (self.stem, self.head):
            if part is not None:
                part.initialise(generator)

    def encode(self, x: Tensor) -> SparseCodes:
        """Inputs [N, d] -> codes of N tokens over F latents.

        Raises:
            ValueError: another shape.
        """
        return self.encoded(layer_norm(x)[0] if self.per_token_norm else x).codes

    def encoded(self, x: Tensor, generator: torch.Generator | None = None) -> Encoded:
        """Inputs [N, dim], normalised already -> every stage up to their codes; with a generator, codes are sampled."""
        embedded = self.embed(x)
        listed = self.select(embedded)
        codes = self.code.activate(listed) if generator is None else self.code.sample(listed, generator)
        return Encoded(embedded, listed, codes)

    def embed(self, x: Tensor) -> Tensor:
        """Inputs [N, dim], normalised already -> what the linear encoder reads [N P, d]; x itself without a stem."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x: expected [N, {self.dim}], got {tuple(x.shape)}")
        return x if self.stem is None else self.stem(x)

    def select(self, x: Tensor) -> SparseCodes:
        """Embedded inputs [N P, d] -> the pre-activations that the code lists."""
        if torch.is_autocast_enabled(x.device.type):
            # centred before it is rounded: activations share a large mean that would use up a short mantissa
            short = torch.get_autocast_dtype(x.device.type)
            centred = x if self.b_pre is None else x - self.b_pre
            return self.code.select(centred.to(short), self.W_enc.to(short), self.b_enc, None)
        return self.code.select(x, self.W_enc, self.b_enc, self.b_pre)

    def decode(self, codes: SparseCodes, x: Tensor | None = None) -> Tensor:
        """Codes of N tokens -> reconstruction [N, d_out].

        `x` [N, d] are the inputs of those codes, required where the reconstruction depends on more than the codes (a
        skip connection, layer norm).

        Raises:
            ValueError: x is required and missing.
        """
        out = self.squashed(self.decoded(codes).outputs)
        if self.W_skip is None and not self.per_token_norm:
            return out
        if x is None:
            raise ValueError("x: with a skip connection or layer norm, decode(codes, x) needs the inputs")
        if not self.per_token_norm:
            return self.add_skip(out, x)
        normed, statistics = layer_norm(x)
        return self.add_skip(out, normed) * statistics.deviation + statistics.mean

    def decoded(self, codes: SparseCodes, embedded: Tensor | None = None) -> Decoded:
        """Codes of N P rows -> every stage up to the head's outputs.

        With `embedded` [N P, d], what the encoder read, the gradient of a straight-through code reaches it.
        """
        decoded = self.dictionary.decode(codes)
        passed = decoded if embedded is None else self.code.pass_through(decoded, embedded)
        return Decoded(decoded, self.outputs(passed))

    def outputs(self, decoded: Tensor) -> Tensor:
        """The dictionary's output [N P, d] -> the head's outputs [N, d_out] (logits, where it squashes them)."""
        return decoded if self.head is None else self.head(decoded)

    def show(self, decoded: Tensor) -> Tensor:
        """The dictionary's output [N P, d] -> the reconstruction [N, d_out]."""
        return self.squashed(self.outputs(decoded))

    def squashed(self, outputs: Tensor) -> Tensor:
        """The head's outputs [N, d_out] -> the reconstruction."""
        return torch.sigmoid(outputs) if self.squashes else outputs

    @property
    def squashes(self) -> bool:
        """Whether the reconstruction is the sigmoid of the head's outputs."""
        return self.head is not None and self.head.squash

    def add_skip(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """reconstruction [N, d_out] + W_skip x, where there is a skip connection."""
        return reconstruction if self.W_skip is None else reconstruction + x @ self.W_skip.T

    def without_skip(self, target: Tensor, x: Tensor) -> Tensor:
        """What the dictionary is to reconstruct: target [N, d_out] - W_skip x, where there is a skip connection."""
        return target if self.W_skip is None else target - x @ self.W_skip.T

    def forward(self, x: Tensor) -> Output:
        """Inputs [N, d] -> codes and reconstruction [N, d_out]."""
        codes = self.encode(x)
        return Output(codes, self.decode(codes, x))

    @torch.no_grad()
    def like(self, code: Code) -> Autoencoder:
        """An autoencoder with this one's shape and weights, and another code."""
        model = Autoencoder(
            self.dim,
            self.width,
            code,
            dim_out=self.dim_out,
            transcodes=self.transcodes,
            skip=self.W_skip is not None,
            per_token_norm=self.per_token_norm,
            stem=copy.deepcopy(self.stem),
            head=copy.deepcopy(self.head),
            unit_atoms=self.dictionary.unit,
        ).to(self.W_enc.device)
        weights = {name: t for name, t in self.state_dict().items() if not name.startswith("code.")}
        model.load_state_dict(weights, strict=False)
        return model

    @torch.no_grad()
    def folded(self, inputs: Affine, targets: Affine) -> Autoencoder:
        """The same map with the normalisation built in: `folded(x)` is `targets.undo(self(inputs.apply(x)))`.

        Atoms are scaled back to unit norm where the code allows it, so that a latent's value is the length of its
        contribution in the units of the targets; pre-activations, thresholds and values take up the old norm. A
        selection of the largest allows it only if all norms are equal; otherwise atoms keep their norms. With a stem or
        head nothing can be folded, and nothing is normalised.
        """
        if self.stem is not None or self.head is not None:
            return self.like(self.code)
        norms = targets.atoms(self.dictionary.W).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        norms = norms.mean().expand_as(norms) if (norms.max() - norms.min()) <= 1e-5 * norms.max() else norms
        code = self.code.rescaled(norms)
        factors = torch.ones_like(norms) if code is None else norms
        model = self.like(code or self.code)
        model.dictionary.W.copy_(targets.atoms(self.dictionary.W) / factors.unsqueeze(1))
        model.dictionary.b.copy_(targets.undo(self.dictionary.b))
        W_enc = inputs.encoder(self.W_enc) * factors.unsqueeze(1)
        if self.code.tied:
            return model  # f = w·(s x) / s: unit atoms encode as they decode
        model.W_enc.copy_(W_enc)
        # self reads inputs.matrix (x - offset) - b_pre; the offset's part moves to the bias
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
