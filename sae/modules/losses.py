"""Loss terms: plain functions that return one value a sample, summed over dimensions; one reduction for all.

    loss, parts = total_loss([Term("squared_error"), Term("auxk", 1 / 32)], step)

A term takes a `Step` and returns [N]; the loss is the weighted sum of the terms' means over samples. Each says what it
reads, so that a route can tell how its gradient is made: "reconstruction", "entries" (values and pre-activations listed
by the code), "dead" (rows of the dead latents), or "all" for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError, unknown_choice
from sae.modules.codes import Code
from sae_kernels import SparseCodes, sparse_decode

Reads = Literal["reconstruction", "entries", "dead", "all"]


class Step(NamedTuple):
    """Everything one training step knows, for loss terms to choose from."""

    x: Tensor
    """What the linear encoder reads [N P, d]: the inputs, or their embedding by the stem, P rows a sample."""
    target: Tensor
    """What is to be reconstructed [N, d_out]."""
    code: Code
    listed: SparseCodes
    """Pre-activations that the code listed."""
    codes: SparseCodes
    """Latent codes of x, the same entries; a draw, where the code is a distribution."""
    reconstruction: Tensor
    """[N, d_out]; a head's outputs as they leave it: logits, where it squashes them."""
    W_enc: Tensor
    """[F, d]."""
    b_enc: Tensor
    """[F]."""
    b_pre: Tensor | None
    """Subtracted from the input before encoding [d]."""
    W_dec: Tensor
    """Atoms [F, d_out]."""
    b_dec: Tensor
    """[d_out]."""
    norms: Tensor | None
    """What a latent's value counts for in penalties [F]: its atom's norms summed over sites; None where all are 1."""
    dead: Tensor
    """Indices of the dead latents, int64 [n_dead]; refreshed every few steps by the trainer."""
    auxk: int
    """How many dead latents the auxiliary loss uses."""
    power: float = 1.0
    """p of the penalty Σ f^p at this step."""
    adjacent: Tensor | None = None
    """Whether rows 2i and 2i + 1 are neighbouring tokens of a document, bool [N / 2]; None where rows are shuffled."""
    decoded: Tensor | None = None
    """What the dictionary made of the codes [N P, d], before a head."""
    squashed: bool = False
    """Whether the reconstruction is the sigmoid of `reconstruction`."""
    corrupted: Tensor | None = None
    """Which of the inputs' dimensions were corrupted, bool [N, D]; None where nothing is."""
    progress: float = 1.0
    """Share of the steps that are done."""
    running: Tensor | None = None
    """The latents' running mean values [F], detached; None where no term asks for it."""

    @property
    def mean(self) -> Tensor:
        """The reconstruction [N, d_out] in the units of the target."""
        return torch.sigmoid(self.reconstruction) if self.squashed else self.reconstruction


class Term(NamedTuple):
    """One weighted term of a loss."""

    name: str
    """In `TERMS`."""
    weight: float = 1.0
    settings: Mapping[str, Any] = {}
    """Further arguments of the term's function."""
    warmup: float = 0.0
    """Share of the steps over which its weight rises from zero."""

    def values(self, step: Step) -> Tensor:
        """The term, unweighted, [N]; what a term gives row by row is summed over the rows of a sample."""
        values = find_term(self.name).function(step, **self.settings)
        return values if len(values) == len(step.target) else values.view(len(step.target), -1).sum(1)

    def at(self, progress: float) -> Term:
        """The term with the weight it has when this share of the steps is done."""
        return self if progress >= self.warmup else self._replace(weight=self.weight * progress / self.warmup)


class Entry(NamedTuple):
    """What `TERMS` holds under a name."""

    function: Callable[..., Tensor]
    reads: Reads


TERMS: dict[str, Entry] = {}


def term(reads: Reads) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: makes a function known as a loss term under its own name.

    Raises:
        ConfigError: the name is taken.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if function.__name__ in TERMS:
            raise ConfigError(f"loss term {function.__name__!r} is registered already")
        TERMS[function.__name__] = Entry(function, reads)
        return function

    return register


def find_term(name: str) -> Entry:
    """The registered term.

    Raises:
        ConfigError: there is none of that name; lists those that exist.
    """
    if name not in TERMS:
        raise unknown_choice("loss term", name, TERMS)
    return TERMS[name]


def total_loss(terms: Sequence[Term], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms' means over samples, and each unweighted mean (detached, 0-dim)."""
    parts: dict[str, Tensor] = {}
    loss = torch.zeros((), device=step.x.device)
    for entry in terms:
        mean = entry.values(step).mean()
        parts[entry.name] = mean.detach()
        loss = loss + entry.weight * mean
    return loss, parts


@term("reconstruction")
def squared_error(step: Step) -> Tensor:
    """||x - x̂||², summed over dimensions, [N]."""
    return (step.target - step.mean).float().pow(2).sum(-1)


@term("reconstruction")
def nested_error(step: Step, prefixes: Sequence[int]) -> Tensor:
    """Mean over the prefixes m of ||x - b - Σ_{j<m} f_j w_j||² (Matryoshka SAE: Bussmann et al. 2025, eq. 4), [N].

    `prefixes` are rising numbers of latents, the last of them F.
    """
    # float32 throughout: the parts of a sum of many
    partial = step.b_dec.float().expand(step.target.shape)
    error = torch.zeros(step.target.shape[0], device=step.target.device)
    for low, high in zip([0, *prefixes[:-1]], prefixes, strict=True):
        inside = (step.codes.indices >= low) & (step.codes.indices < high)
        group = step.codes.with_values(torch.where(inside, step.codes.values, 0))
        zero = torch.zeros_like(step.b_dec)
        partial = partial + sparse_decode(group, step.W_dec.to(group.values.dtype), zero).float()
        error = error + (step.target - partial).pow(2).sum(-1)
    return error / len(prefixes)


@term("reconstruction")
def gate_error(step: Step) -> Tensor:
    """||x - x̂(relu(π))||² with the dictionary held fixed (Gated SAE: Rajamanoharan et al. 2024a, eq. 8), [N]."""
    gate = step.listed.with_values(torch.relu(step.listed.values))
    estimate = sparse_decode(gate, step.W_dec.detach().to(gate.values.dtype), step.b_dec.detach())
    return (step.target.detach() - estimate).float().pow(2).sum(-1)


@term("dead")
def auxk(step: Step) -> Tensor:
    """||e - ê||² / Var(e), ê from the top `auxk` dead latents (Gao et al. 2024, appendix A.2), [N].

    e is the *detached* residual, ê its reconstruction from the dead latents' largest pre-activations, without the
    decoder bias. Var(e) is the mean over samples of ||e - mean(e)||². Zero where no latent is dead, and where the
    quotient is not a number (an exactly constant residual). Dense on the compacted rows of the dead latents: the
    gradient reaches their rows of W_enc, b_enc and W_dec.
    """
    error = (step.target - step.reconstruction).detach().float()
    if step.dead.numel() == 0:
        return error.new_zeros(error.shape[0])
    pre = _dead_pre_activations(step)
    values, chosen = pre.topk(min(step.auxk, step.dead.numel()), dim=-1)
    code = torch.zeros_like(pre).scatter(1, chosen, torch.relu(values))
    estimate = (code @ step.W_dec[step.dead]).float()
    variance = (error - error.mean(0)).pow(2).sum(-1).mean()
    return torch.nan_to_num((error - estimate).pow(2).sum(-1) / variance, nan=0.0, posinf=0.0)


@term("dead")
def pre_activation(step: Step) -> Tensor:
    """Σ over dead latents of relu(θ_j - pre_j) ||w_j||, which lifts them until they fire (Conerly et al. 2025), [N]."""
    if step.dead.numel() == 0:
        return step.x.new_zeros(step.x.shape[0])
    theta = getattr(step.code, "theta", None)
    below = -_dead_pre_activations(step) if theta is None else theta.detach()[step.dead] - _dead_pre_activations(step)
    weights = 1.0 if step.norms is None else step.norms[step.dead]
    return (torch.relu(below.float()) * weights).sum(-1)


def _dead_pre_activations(step: Step) -> Tensor:
    centred = step.x if step.b_pre is None else step.x - step.b_pre
    return torch.nn.functional.linear(centred, step.W_enc[step.dead], step.b_enc[step.dead])
