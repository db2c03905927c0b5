"""fused_step: a whole training step of a sparse autoencoder, squared error and Adam, without an F x d gradient.

    forward = fused_forward(params, x, k=32, workspace=workspace)
    extra = auxk(forward.residual)                                  # optional: gradients of a few rows
    result = fused_update(params, m, v, forward, step=t, lr=2e-4, max_norm=1.0, extra=extra)

The same numbers as the other route, `topk_encode`, `sparse_decode`, `loss.backward()`, `clip_scale` and `adam_step`
(naive.py is that route), up to rounding. Two halves, so that a term that needs the residual (AuxK) can be computed
between them, from the weights as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_kernels.adam_step.naive import Adam
from sae_kernels.buffers import Workspace
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, no_autocast
from sae_kernels.fused_step import naive
from sae_kernels.topk_encode.op import topk_encode

FORWARD = {
    "naive": naive.forward,
    "cpu": "sae_kernels.fused_step.cpu:forward",
    "gpu": "sae_kernels.fused_step.gpu:forward",
}
NESTED = {"naive": naive.forward_nested, "cpu": "sae_kernels.fused_step.cpu:forward_nested"}
UPDATE = {"naive": naive.update, "cpu": "sae_kernels.fused_step.cpu:update", "gpu": "sae_kernels.fused_step.gpu:update"}

UPDATE_ANY = {name: UPDATE[name] for name in ("naive", "cpu")}  # a GPU's own update knows relu and one group alone


class Parameters(NamedTuple):
    """The four parameters of a sparse autoencoder, or as many moments of theirs; fp32, contiguous."""

    W_enc: Tensor
    """[F, d]."""
    b_enc: Tensor
    """[F]."""
    W_dec: Tensor
    """[F, d]; rows have unit norm, before and after every step."""
    b_dec: Tensor
    """[d]; with `tied` also what the encoder subtracts from its input."""


class RowGradients(NamedTuple):
    """Gradients that another loss term (AuxK on the dead latents) adds on some rows.

    The term's pre-activations are W_enc (x - b_pre) + b_enc like the codes', so with `tied` its part of the gradient of
    b_dec follows from `b_enc` and is added here.
    """

    rows: Tensor
    """Latents [R], int64, each once."""
    W_enc: Tensor
    """[R, d]."""
    b_enc: Tensor
    """[R]."""
    W_dec: Tensor
    """[R, d]."""


class StepForward(NamedTuple):
    """What a step computed before its update; valid until the next `fused_forward` with the same workspace."""

    codes: SparseCodes
    """Codes of N tokens."""
    residual: Tensor
    """target - x̂ [N, d]."""
    squared_error: Tensor
    """Σ_d residual² of every token [N], averaged over the prefixes; the loss is its mean."""
    centred: Tensor
    """What the encoder multiplied [N, d_in]."""
    dots: Tensor
    """What entry j of token n adds to -dL/df / 2 [N]: spread_ng · w_j, of the shape of the codes' values; empty where
    the GPU's own update makes them while it reads each atom once."""
    tied: bool
    """Whether b_dec was subtracted from the encoder's input."""
    spread: Tensor
    """[N G, d]: row n G + g is (1/G) Σ_{p >= g} (target - x̂ of prefix p), which the latents of group g see; with one
    group the residual itself."""
    starts: Tensor | None
    """With more than one group: where the entries of token n and group g begin, int64 [N G + 1]."""

    @property
    def groups(self) -> int:
        """G, the number of nested prefixes; 1 without nesting."""
        return self.spread.shape[0] // max(self.residual.shape[0], 1) or 1

    @property
    def factor(self) -> float:
        """dL/df of an entry is `factor` times its dot: -2 / N."""
        return -2.0 / max(self.residual.shape[0], 1)


class StepResult(NamedTuple):
    """What an update did."""

    grad_norm: Tensor
    """Global norm of the gradient of all four parameters and `more`, before clipping and projection; 0-dim fp32."""
    applied: Tensor
    """0-dim bool: False where the gradient was not finite, and then nothing was written."""


def fused_forward(
    params: Parameters,
    x: Tensor,
    k: int | None = None,
    *,
    codes: SparseCodes | None = None,
    target: Tensor | None = None,
    tied: bool = True,
    prefixes: Sequence[int] | None = None,
    workspace: Workspace | None = None,
) -> StepForward:
    """Encode, decode, residual, squared error. No autograd graph is made.

    With `prefixes` the loss is Matryoshka's (Bussmann et al. 2025): the mean over the prefixes of the squared error of
    the reconstruction from the first m latents alone. One gather of the atoms makes all of them.

    Args:
        params: fp32.
        x: inputs [N, d].
        k: latents kept a token (codes = topk_encode), or
        codes: codes made already, by another selection whose gradient passes through its positive values.
        target: what the reconstruction is compared with [N, d]; None for x itself.
        tied: the encoder subtracts b_dec from x (an autoencoder); False for none (a transcoder).
        prefixes: rising numbers of latents, the last of them F; then `codes` are CSR, latents ascending in each token.
        workspace: keeps the results' memory between steps; None allocates afresh.

    Raises:
        ValueError: neither or both of k and codes, or shapes that do not fit.
    """
    if (k is None) == (codes is None):
        raise ValueError(f"give either k or codes; got k = {k} and codes {'set' if codes is not None else 'None'}")
    target = x if target is None else target
    if prefixes is not None and (codes is None or codes.offsets is None or prefixes[-1] != params.W_dec.shape[0]):
        raise ValueError(f"prefixes {list(prefixes)}: expected CSR codes, and F = {params.W_dec.shape[0]} at the end")
    if target.shape != (x.shape[0], params.b_dec.shape[0]):
        raise ValueError(f"expected target [{x.shape[0]}, {params.b_dec.shape[0]}]; got {tuple(target.shape)}")
    workspace = workspace or Workspace()
    with torch.no_grad(), no_autocast(x.device.type):
        centred = x.float()
        if tied:
            out = workspace.get("centred", tuple(x.shape)) if x.device.type == "cpu" else None
            centred = torch.sub(centred, params.b_dec, out=out)
        if codes is None:
            assert k is not None
            codes = topk_encode(centred, params.W_enc, params.b_enc, k)
        if prefixes is None or len(prefixes) == 1:
            forward = choose("fused_forward", params.W_enc, FORWARD)
            residual, error, dots = forward(params, codes, target, workspace)
            return StepForward(codes, residual, error, centred, dots, tied, residual, None)
        starts = group_starts(codes, prefixes)
        nested = choose("fused_forward_nested", params.W_enc, NESTED)
        residual, error, dots, spread = nested(params, codes, target, starts, workspace)
    return StepForward(codes, residual, error, centred, dots, tied, spread, starts)


def group_starts(codes: SparseCodes, prefixes: Sequence[int]) -> Tensor:
    """Where the entries of every token's groups begin in CSR codes with ascending latents, int64 [N G + 1]."""
    assert codes.offsets is not None
    places = codes.rows() * codes.width + codes.indices
    begins = torch.tensor([0, *prefixes[:-1]], device=places.device)
    tokens = torch.arange(codes.tokens, device=places.device) * codes.width
    wanted = (tokens.unsqueeze(1) + begins).flatten()
    return torch.cat([torch.searchsorted(places, wanted), codes.offsets[-1:]])


def fused_update(
    params: Parameters,
    m: Parameters,
    v: Parameters,
    forward: StepForward,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 6.25e-10,
    max_norm: float | None = None,
    extra: RowGradients | None = None,
    through: Tensor | None = None,
    more: float = 0.0,
) -> StepResult:
    """One Adam step on the mean squared error (and `extra`), in place on params, m and v.

    Gradients are scaled by min(1, max_norm / norm), norm taken over all four parameters, before each atom's parallel
    part is projected out of its gradient; then Adam (see adam_step), then every atom back to unit norm. On the CPU a
    pass that only sums squares comes first where the norm may exceed max_norm; where a bound by Cauchy and Schwarz
    shows that it cannot, as on all but unusual steps with a generous max_norm, it falls out of the sweep that updates.

    Args:
        params, m, v: weights and Adam's moments.
        forward: of the same params, unchanged since.
        step: t, counted from 1.
        lr, beta1, beta2, eps: see adam_step.
        max_norm: clip the global norm to this; None for no clipping.
        extra: further gradients of some rows.
        through: gradient of the loss by every entry's pre-activation, of the shape of the codes' values, for codes and
            terms beyond relu and squared error; None: `forward.factor * forward.dots` where the value is positive.
        more: squared norm of further gradients that the caller clips with these; counted in the norm.

    Returns:
        The norm, and whether the step was taken. A gradient that is not finite is refused before anything is written.

    Raises:
        ValueError: weights or moments that are not contiguous fp32.
    """
    for kind, group in (("params", params), ("m", m), ("v", v)):
        for name, tensor in zip(Parameters._fields, group, strict=True):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(f"{kind}.{name}: expected contiguous float32; got {tensor.dtype}")
    with torch.no_grad(), no_autocast(params.W_enc.device.type):
        special = through is not None or forward.starts is not None or more > 0
        update = choose("fused_update", params.W_enc, UPDATE_ANY if special else UPDATE)
        adam = Adam(step, lr, beta1, beta2, eps)
        return StepResult(*update(params, m, v, forward, adam, max_norm, extra, through, more))
