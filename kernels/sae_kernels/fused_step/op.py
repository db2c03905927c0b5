"""fused_step: a training step of a sparse autoencoder on the squared error, without an F x d gradient in memory.

    forward = fused_forward(params, x, k=32, workspace=workspace)
    extra = auxk(forward.residual)                                  # optional: gradients of a few rows
    result = fused_update(params, m, v, forward, step=t, lr=2e-4, max_norm=1.0, extra=extra)

Up to rounding it equals `topk_encode`, `sparse_decode`, `loss.backward()`, `clip_scale` and `adam_step` (see naive.py).
It has two halves, so that a loss term that needs the residual (AuxK) can be computed between them, from the weights
before the update.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_kernels.adam_step.naive import Adam
from sae_kernels.adam_step.op import check_moments
from sae_kernels.buffers import Workspace
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backend_for, choose, no_autocast
from sae_kernels.formats.naive import MOMENTS
from sae_kernels.fused_step import naive
from sae_kernels.topk_encode.op import topk_encode
from sae_kernels.tuning import chunk_of

FORWARD = {
    "naive": naive.forward,
    "cpu": "sae_kernels.fused_step.cpu:forward",
    "gpu": "sae_kernels.fused_step.gpu:forward",
}
UPDATE = {"naive": naive.update, "cpu": "sae_kernels.fused_step.cpu:update", "gpu": "sae_kernels.fused_step.gpu:update"}


def fused_backend(tensor: Tensor) -> str:
    """The backend that takes a step on parameters like this one: "gpu", "cpu" or "naive"."""
    return backend_for("fused_update", tensor, UPDATE)


class Parameters(NamedTuple):
    """The four parameters of a sparse autoencoder, or their moments; fp32, contiguous.

    Both matrices may be stored in fewer bits (see formats/naive.py): weights in bf16, moments in bf16 or 8 bits.
    """

    W_enc: Tensor
    """[F, d]."""
    b_enc: Tensor
    """[F]."""
    W_dec: Tensor
    """[F, d]; rows have unit norm, before and after every step."""
    b_dec: Tensor
    """[d]; with `tied` the encoder also subtracts it from its input."""


class RowGradients(NamedTuple):
    """Gradients that another loss term (AuxK on the dead latents) adds to some rows.

    The term's pre-activations are W_enc (x - b_pre) + b_enc like those of the codes, so with `tied` its contribution to
    the gradient of b_dec follows from `b_enc`; the update adds it.
    """

    rows: Tensor
    """Latents [R], int64, without duplicates."""
    W_enc: Tensor
    """[R, d]."""
    b_enc: Tensor
    """[R]."""
    W_dec: Tensor
    """[R, d]."""


class Copies(NamedTuple):
    """What an update leaves for the next step, in a GPU's 16-bit mode; stale once weights change in another way.

    Products, gathers and stored rows are of the matrices' dtype; sums, and the parameters themselves, are fp32.
    """

    W_enc: Tensor
    """[F, d]; the parameter itself where it has the dtype."""
    W_dec: Tensor
    """[F, d_out]."""
    row_norms: Tensor
    """The largest norm of a row of W_enc in every run of `chunk_of(F)` rows, fp32."""


class StepForward(NamedTuple):
    """The results of a forward pass; valid until the next `fused_forward` with the same workspace."""

    codes: SparseCodes
    """Codes of N tokens."""
    residual: Tensor
    """target - x̂ [N, d]; of the dtype of the copies, as `spread` is."""
    squared_error: Tensor
    """Σ_d residual² of every token [N], averaged over the prefixes; the loss is its mean."""
    centred: Tensor
    """The input of the encoder's product [N, d_in]."""
    dots: Tensor
    """spread_ng · w_j of every entry, of the shape of the codes' values: -N/2 times the gradient of the loss with
    respect to the entry. Empty on a GPU if not asked for: its update, which reads every atom anyway, computes them."""
    tied: bool
    """Whether b_dec was subtracted from the encoder's input."""
    spread: Tensor
    """[N G, d]: row n G + g is (1/G) Σ_{p >= g} (target - x̂ of prefix p), the residual for the latents of group g; with
    one group the residual itself."""
    starts: Tensor | None
    """With more than one group: the first entry of token n and group g at n G + g, int64 [N G + 1]."""
    copies: Copies | None = None
    """The copies that were read, which the update renews."""

    @property
    def groups(self) -> int:
        """G, the number of nested prefixes; 1 without nesting."""
        return self.spread.shape[0] // max(self.residual.shape[0], 1) or 1

    @property
    def factor(self) -> float:
        """-2 / N: the gradient of the loss with respect to an entry is `factor` times its dot."""
        return -2.0 / max(self.residual.shape[0], 1)


class StepResult(NamedTuple):
    """The result of an update."""

    grad_norm: Tensor
    """Global norm of the gradients of all four parameters and of `more`, before clipping and projection; 0-dim fp32."""
    applied: Tensor
    """0-dim bool: False if the gradient was not finite or the step not allowed, so that nothing was written."""
    scale: Tensor
    """What clipping multiplied all gradients with, 0-dim; NaN where nothing was written."""


def fused_forward(
    params: Parameters,
    x: Tensor,
    k: int | None = None,
    *,
    codes: SparseCodes | None = None,
    target: Tensor | None = None,
    tied: bool = True,
    prefixes: Sequence[int] | None = None,
    centred: Tensor | None = None,
    dots: bool = True,
    copies: Copies | None = None,
    workspace: Workspace | None = None,
) -> StepForward:
    """Encode, decode, residual and squared error, without an autograd graph.

    With `prefixes` the loss is Matryoshka's (Bussmann et al. 2025): the mean over the prefixes m of the squared error
    of the reconstruction from the first m latents alone. The atoms are gathered once for all prefixes.

    Args:
        params: fp32.
        x: inputs [N, d].
        k: latents kept a token; the codes are topk_encode's. Give either k or codes.
        codes: codes of another selection, whose gradient passes through its positive values.
        target: the reconstruction's target [N, d]; None for x itself.
        tied: whether the encoder subtracts b_dec from x (an autoencoder) or not (a transcoder).
        prefixes: ascending numbers of latents, the last of them F; `codes` must then be CSR, with ascending latents.
        centred: the encoder's input, x - b_dec with `tied`, if the caller has it.
        dots: whether the caller reads the dots.
        copies: of the present weights; None to read the parameters themselves.
        workspace: memory for the results, reused at every step; None allocates it anew.

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
        if centred is None:
            centred = _centred(params, x, tied, workspace, copies)
        if codes is None:
            assert k is not None
            codes = topk_encode(centred, params.W_enc if copies is None else copies.W_enc, params.b_enc, k)
        starts = None if prefixes is None or len(prefixes) == 1 else group_starts(codes, tuple(prefixes))
        forward = choose("fused_forward", params.W_enc, FORWARD)
        residual, error, products, spread = forward(params, codes, target, starts, dots, workspace, copies)
    return StepForward(codes, residual, error, centred, products, tied, spread, starts, copies)


def _centred(params: Parameters, x: Tensor, tied: bool, workspace: Workspace, copies: Copies | None) -> Tensor:
    centred = x.float()
    if tied:
        out = workspace.get("centred", tuple(x.shape)) if x.device.type == "cpu" and copies is None else None
        centred = torch.sub(centred, params.b_dec, out=out)
    return centred if copies is None else centred.to(copies.W_enc.dtype)


@torch.no_grad()
def copies_of(params: Parameters, dtype: torch.dtype) -> Copies:
    """Copies of these weights for products in `dtype`."""
    chunk = chunk_of(params.W_enc.shape[0])
    norms = torch.linalg.vector_norm(params.W_enc, dim=1, dtype=torch.float32)
    norms = torch.nn.functional.pad(norms, (0, -norms.shape[0] % chunk)).view(-1, chunk).amax(1)
    return Copies(params.W_enc.to(dtype), params.W_dec.to(dtype), norms)


@functools.cache
def _begins(prefixes: tuple[int, ...], device: torch.device) -> Tensor:
    # a copy from the host makes it wait for the device: once is enough
    return torch.tensor([0, *prefixes[:-1]], device=device)


def group_starts(codes: SparseCodes, prefixes: tuple[int, ...]) -> Tensor:
    """The first entry of every token and group of CSR codes with ascending latents, int64 [N G + 1]."""
    assert codes.offsets is not None
    places = codes.rows() * codes.width + codes.indices
    tokens = torch.arange(codes.tokens, device=places.device) * codes.width
    wanted = (tokens.unsqueeze(1) + _begins(prefixes, places.device)).flatten()
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
    more: Tensor | float = 0.0,
    allowed: Tensor | None = None,
    numbers: Tensor | None = None,
) -> StepResult:
    """One Adam step on the mean squared error (and `extra`), in place on params, m and v.

    Gradients are scaled by min(1, max_norm / norm), with the norm over all four parameters. Then each atom's gradient
    is projected orthogonally to the atom, Adam updates all parameters (see adam_step), and the atoms are scaled back to
    unit norm. An extra pass computes the norm first, unless a bound by Cauchy and Schwarz shows that it is below
    max_norm, which holds at all but unusual steps with a generous max_norm. On a GPU nothing is copied to the host.

    Args:
        params, m, v: weights and Adam's moments; those of both matrices may be in fewer bits (see adam_step).
        forward: result of `fused_forward` with the same, unchanged params; its copies are renewed.
        step: t, counted from 1.
        lr, beta1, beta2, eps: see adam_step.
        max_norm: clip the global norm to this; None for no clipping.
        extra: gradients added to some rows.
        through: gradient of the loss with respect to every entry's pre-activation, of the shape of the codes' values,
            for codes and loss terms beyond relu and squared error; None for `forward.factor * forward.dots` where the
            value is positive.
        more: squared norm of other gradients that the caller clips together with these; included in the norm. A
            0-dim float64 tensor on the parameters' device need not be copied.
        allowed: 0-dim bool; where it is False nothing is written, and the norm is 0.
        numbers: see adam_step.

    Returns:
        The norm, and whether the step was taken. If the gradient is not finite, nothing is written.

    Raises:
        ValueError: weights or moments that are not contiguous, or in no format that is offered.
    """
    for name, param, first, second in zip(Parameters._fields, params, m, v, strict=True):
        matrix = name in ("W_enc", "W_dec")
        if param.dtype not in ((torch.float32, torch.bfloat16) if matrix else (torch.float32,)):
            raise ValueError(f"params.{name}: expected torch.float32; got {param.dtype}")
        check_moments(f"m.{name}, v.{name}: ", param, first, second, MOMENTS if matrix else (torch.float32,))
        if not (param.is_contiguous() and first.is_contiguous() and second.is_contiguous()):
            raise ValueError(f"{name}: expected contiguous weights and moments")
    if params.W_enc.dtype != params.W_dec.dtype or m.W_enc.dtype != m.W_dec.dtype:
        raise ValueError("expected both matrices, and their moments, in one format each")
    with torch.no_grad(), no_autocast(params.W_enc.device.type):
        more = more if isinstance(more, Tensor) else params.W_enc.new_full((), more, dtype=torch.float64)
        options = naive.Options(Adam(step, lr, beta1, beta2, eps, numbers), max_norm, extra, through, more, allowed)
        norm, scale = choose("fused_update", params.W_enc, UPDATE)(params, m, v, forward, options)
        if forward.copies is not None and fused_backend(params.W_enc) != "gpu":
            for copy, renewed in zip(forward.copies, copies_of(params, params.W_enc.dtype), strict=True):
                copy.copy_(renewed)
    return StepResult(norm, torch.isfinite(scale), scale)
