"""What a loss term may read: one class for each kind of reading. The annotation of a term's first parameter picks it.

    view             gives                                                               routes that can build it
    Entries          values and pre-activations of the entries that the code lists       autograd, fused
    DeadRows         pre-activations and atoms of the dead latents; the residual         autograd, fused
    Reconstructions  nothing to compute with: the term names the squared error it wants  autograd, fused
    Output           the target, and the reconstruction as the head returns it           autograd
    Everything       all that one forward pass computed, and the weights                 autograd

A view has only what every route that builds it can also differentiate. To read anything else is a type error, and
raises AttributeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae.modules.codes import Code
from sae_kernels import SparseCodes, sparse_decode


def no_dictionary(codes: SparseCodes) -> Tensor:
    """Stands in for `Entries.frozen_error` where there is no dictionary to decode with."""
    raise ValueError(f"frozen_error: these entries of {codes.tokens} tokens came without a dictionary")


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The entries that the code lists, for N tokens."""

    code: Code
    """Its parameters, thresholds for example, may be read; they receive gradients."""
    listed: SparseCodes
    """Pre-activations."""
    codes: SparseCodes
    """Latent values, for the same entries; a sample, where the code is a distribution."""
    dim: int
    """Width d of what the encoder reads."""
    norms: Tensor | None = None
    """Norm of every latent's atom, summed over sites [F]; None where every atom has norm 1."""
    power: float = 1.0
    """p of the penalty Σ f^p at this step."""
    adjacent: Tensor | None = None
    """Whether rows 2i and 2i + 1 are neighbouring tokens of a document, bool [N / 2]; None where rows are shuffled."""
    progress: float = 1.0
    """Share of the training steps that are done."""
    running: Tensor | None = None
    """Running mean of every latent's value [F], without gradient; None where the recipe keeps none."""
    frozen_error: Callable[[SparseCodes], Tensor] = no_dictionary
    """||target - Σ_j f_j w_j - b||² of given codes [N]; only the codes' values receive a gradient."""


@dataclass(frozen=True, kw_only=True)
class DeadRows:
    """The R dead latents (at least one), and what the living ones leave unexplained."""

    pre: Tensor
    """Pre-activations [N, R]; gradients reach the latents' encoder rows and biases."""
    W_dec: Tensor
    """Atoms [R, d_out]."""
    thresholds: Tensor
    """Pre-activation above which each latent fires [R], without gradient."""
    residual: Tensor
    """target - reconstruction [N, d_out], float32, without gradient."""
    auxk: int
    """How many dead latents the auxiliary loss uses for each token."""
    site_widths: Sequence[int]
    """Widths of the sites that atoms write to, side by side."""

    @property
    def norms(self) -> Tensor | None:
        """Norm of every atom, summed over sites [R]; None where every atom has norm 1."""
        return site_norms(self.W_dec, self.site_widths)

    def strongest(self) -> Tensor:
        """A code [N, R] of the relu of every token's `auxk` largest pre-activations, zero elsewhere."""
        values, top = self.pre.topk(min(self.auxk, self.pre.shape[1]), dim=-1)
        return torch.zeros_like(self.pre).scatter(1, top, torch.relu(values))

    def decoded(self, code: Tensor) -> Tensor:
        """A code [N, R] -> its reconstruction [N, d_out], without the bias."""
        return code @ self.W_dec

    def variance(self) -> Tensor:
        """Mean over samples of ||e - mean(e)||², e the residual; 0-dim."""
        return (self.residual - self.residual.mean(0)).pow(2).sum(-1).mean()


class SquaredError(NamedTuple):
    """Names a squared error of the reconstruction; the route computes it, and its gradient in a way of its own."""

    prefixes: Sequence[int] | None = None
    """Average the errors of the reconstructions from the first m latents alone, for these rising m, the last of them F;
    None for the reconstruction from all latents."""


class Reconstructions:
    """For terms that return a `SquaredError`: a fused step never holds the reconstruction itself."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The reconstruction of N samples."""

    target: Tensor
    """[N, d_out]"""
    reconstruction: Tensor
    """[N, d_out] as the head returns it: logits, where `squashed`."""
    squashed: bool = False
    """Whether what is compared with the target is the sigmoid of `reconstruction`."""
    corrupted: Tensor | None = None
    """Which dimensions of the inputs were corrupted, bool [N, d]; None where none were."""

    @property
    def mean(self) -> Tensor:
        """The reconstruction [N, d_out] in the units of the target."""
        return torch.sigmoid(self.reconstruction) if self.squashed else self.reconstruction

    def squared_error(self) -> Tensor:
        """||x - x̂||², summed over dimensions [N]."""
        return (self.target - self.mean).float().pow(2).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One forward pass on N samples of P rows each (P = 1 without a stem)."""

    entries: Entries
    output: Output
    x: Tensor
    """What the linear encoder reads [N P, d]."""
    decoded: Tensor
    """What the dictionary makes of the codes [N P, d_dec], before the head."""
    W_enc: Tensor
    """[F, d]"""
    b_enc: Tensor
    """[F]"""
    b_pre: Tensor | None
    """Subtracted from x before encoding [d]."""
    W_dec: Tensor
    """Atoms [F, d_dec]."""
    b_dec: Tensor
    """[d_dec]"""
    dead: Tensor
    """Indices of the dead latents, int64 [R]; refreshed every few steps by the trainer."""
    auxk: int
    """How many dead latents the auxiliary loss uses for each token."""
    site_widths: Sequence[int]
    """Widths of the sites that atoms write to, side by side."""

    @property
    def any_dead(self) -> bool:
        """Whether there are dead latents."""
        return self.dead.numel() > 0

    def view(self, kind: type) -> object:
        """The part of this pass that terms of one kind read."""
        if kind is DeadRows:
            return self.dead_rows()
        return {Entries: self.entries, Reconstructions: Reconstructions(), Output: self.output, Everything: self}[kind]

    def dead_rows(self) -> DeadRows:
        """The rows of the dead latents."""
        centred = self.x if self.b_pre is None else self.x - self.b_pre
        return DeadRows(
            pre=torch.nn.functional.linear(centred, self.W_enc[self.dead], self.b_enc[self.dead]),
            W_dec=self.W_dec[self.dead],
            thresholds=self.entries.code.threshold(self.dead),
            residual=(self.output.target - self.output.reconstruction).detach().float(),
            auxk=self.auxk,
            site_widths=self.site_widths,
        )

    def error(self, asked: SquaredError) -> Tensor:
        """The squared error that a term names [N].

        Over prefixes m it is the mean of ||x - b - Σ_{j<m} f_j w_j||² (Matryoshka SAE: Bussmann et al. 2025, eq. 4).
        """
        prefixes, target, codes = asked.prefixes, self.output.target, self.entries.codes
        if prefixes is None:
            return self.output.squared_error()
        # float32 throughout: the parts of a sum of many
        partial = self.b_dec.float().expand(target.shape)
        error = torch.zeros(target.shape[0], device=target.device)
        for low, high in zip([0, *prefixes[:-1]], prefixes, strict=True):
            inside = (codes.indices >= low) & (codes.indices < high)
            group = codes.with_values(torch.where(inside, codes.values, 0))
            zero = torch.zeros_like(self.b_dec)
            partial = partial + sparse_decode(group, self.W_dec.to(group.values.dtype), zero).float()
            error = error + (target - partial).pow(2).sum(-1)
        return error / len(prefixes)


VIEWS: dict[str, type] = {view.__name__: view for view in (Entries, DeadRows, Reconstructions, Output, Everything)}


def site_norms(W_dec: Tensor, site_widths: Sequence[int]) -> Tensor | None:
    """Σ over sites of ||w_j^site|| for atoms [F, d_out]; None for one site, where every atom has norm 1."""
    if len(site_widths) == 1:
        return None
    return torch.stack([part.norm(dim=1) for part in W_dec.split(list(site_widths), dim=1)]).sum(0)


def frozen_error(codes: SparseCodes, target: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """||target - Σ_j f_j w_j - b||² [N]; only the codes' values receive a gradient."""
    estimate = sparse_decode(codes, W_dec.detach().to(codes.values.dtype), b_dec.detach())
    return (target.detach() - estimate).float().pow(2).sum(-1)
