"""Loss terms that read the listed entries of a code alone: what keeps codes sparse, or neighbours alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes import JumpReLU, per_entry
from sae.modules.losses import term
from sae.modules.views import Entries
from sae_kernels import SparseCodes

BLOCK = 256  # pairs among which a contrast looks for negatives
# a value, times its atom's norm, below which its p-th power goes on in a straight line: its slope would grow unbounded
SMALL = 0.01


@term
def l1(entries: Entries) -> Tensor:
    """Σ_j f_j ||w_j|| (Bricken et al. 2023; weighted by the atoms' norms: Conerly et al. 2024), [N]."""
    return entries.codes.per_token(_weighted(entries, entries.codes.values))


@term
def tanh(entries: Entries, scale: float) -> Tensor:
    """Σ_j tanh(c f_j ||w_j||), c = `scale` (Jermyn et al. 2024), [N].

    At a threshold θ the summand jumps by tanh(c θ), and the estimate by θ is that jump's: -(tanh(c θ)/ε) rect. The
    chain rule through f would give c θ (1 - tanh²(c f)) in its place: the same for small θ, and nothing for large ones.
    """
    if not isinstance(entries.code, JumpReLU):
        return entries.codes.per_token(torch.tanh(scale * _weighted(entries, entries.codes.values)))
    pre, theta = entries.listed.values, per_entry(entries.code.theta.detach(), entries.listed)
    value = torch.tanh(scale * _weighted(entries, torch.where(pre > theta, pre, 0)))
    steps = entries.code.steps(entries.listed)
    jump = torch.tanh(scale * _weighted(entries, theta)) * (steps - steps.detach())  # zero, but for its slope by θ
    return entries.codes.per_token(value + jump)


@term
def lp(entries: Entries) -> Tensor:
    """Σ_j (f_j ||w_j||)^p, p = `entries.power` (p-annealing: Karvonen et al. 2024, section 3, for unit atoms), [N].

    Below f_j ||w_j|| = 0.01 each summand is a straight line to zero.
    """
    f, p = _weighted(entries, entries.codes.values), entries.power
    return entries.codes.per_token(torch.where(f > SMALL, f.clamp_min(SMALL).pow(p), f * SMALL ** (p - 1)))


@term
def l0(entries: Entries) -> Tensor:
    """Σ_j 1[pre_j > θ_j], its gradient the straight-through estimate by θ (Rajamanoharan et al. 2024, eq. 9), [N]."""
    return entries.listed.per_token(_jump(entries).steps(entries.listed))


@term
def l0_target(entries: Entries, target: float) -> Tensor:
    """d (L0 / target - 1)², L0 the batch's mean (Rajamanoharan et al. 2024, appendix F), alike for all tokens, [N].

    The paper's inputs have mean ||x||² = 1, ours d: so the term is d times as large, as the squared error is.
    """
    mean = entries.listed.per_token(_jump(entries).steps(entries.listed)).mean()
    return (entries.dim * (mean / target - 1).square()).expand(entries.listed.tokens)


@term
def gate_l1(entries: Entries) -> Tensor:
    """Σ_j relu(π_j) ||w_j|| of the gate's pre-activations (Gated SAE: Rajamanoharan et al. 2024a, eq. 8), [N]."""
    return entries.listed.per_token(_weighted(entries, torch.relu(entries.listed.values)))


@term
def contrast(entries: Entries, latents: int, temperature: float) -> Tensor:
    """InfoNCE between neighbouring tokens on the first `latents` latents (temporal SAE: Bhalla et al. 2025), [N].

    With z the unit-norm codes of these latents, a the first and b the second tokens of the pairs:
    -log softmax_i(z_a · z_b / temperature), averaged over both directions, the negatives being the other pairs of a
    block of 256. Pairs that are no neighbours count zero.
    """
    if entries.adjacent is None:
        raise ValueError("contrast: expected batches of neighbouring tokens; got shuffled rows")
    codes = entries.codes
    inside = codes.indices < latents
    # what is outside goes into one spare column
    places = torch.where(inside, codes.indices, latents)
    kept = SparseCodes(torch.where(inside, codes.values, 0).float(), places, latents + 1, codes.offsets)
    z = torch.nn.functional.normalize(kept.to_dense()[:, :latents], dim=1, eps=1e-6)
    loss = torch.zeros(len(entries.adjacent), device=z.device)
    pairs = zip(z[0::2][entries.adjacent].split(BLOCK), z[1::2][entries.adjacent].split(BLOCK), strict=True)
    found = [_both_ways(a @ b.T / temperature) for a, b in pairs]
    if not found:
        return loss.repeat_interleave(2)
    return loss.masked_scatter(entries.adjacent, torch.cat(found).float()).repeat_interleave(2)


def _both_ways(scores: Tensor) -> Tensor:
    """Cross-entropy of the diagonal among rows and among columns [n, n], averaged, [n]."""
    return -(scores.log_softmax(1).diagonal() + scores.log_softmax(0).diagonal()) / 2


def _weighted(entries: Entries, values: Tensor) -> Tensor:
    return values.float() if entries.norms is None else values.float() * per_entry(entries.norms, entries.codes)


def _jump(entries: Entries) -> JumpReLU:
    if not isinstance(entries.code, JumpReLU):
        raise ValueError(f"a penalty on L0 needs a code with a threshold; got {entries.code.name!r}")
    return entries.code
