"""From the tensors of another tool to an autoencoder: what readers share.

model = assemble(ReLU(), W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, centred=True, source="their_sae")
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.base.finite import all_finite
from sae.interop.origin import Imported, Origin
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Code, Gated, JumpReLU


class TwoSided(NamedTuple):
    """Twice as many latents, each with one sign; see `two_sided`."""

    W_enc: Tensor
    """[2 F, d]"""
    b_enc: Tensor
    """[2 F]"""
    W_dec: Tensor
    """[2 F, d_out]"""


def assemble(
    code: Code,
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    centred: bool,
    source: str,
    W_skip: Tensor | None = None,
    transcodes: bool = False,
    per_token_norm: bool = False,
) -> Autoencoder:
    """f = code(W_enc x + b_enc), or code(W_enc (x - b_dec) + b_enc) if `centred`; x̂ = Σ_j f_j w_j + b_dec (+ W_skip x).

    Atoms keep the norms that they have in the file, so that values equal the other tool's.

    Args:
        code: with relu, top k, or thresholds of F latents.
        W_enc: [F, d], one row a latent.
        b_enc: [F].
        W_dec: atoms [F, d_out].
        b_dec: [d_out].
        centred: whether the tool subtracts b_dec from its inputs before it encodes them.
        source: file or folder, for messages.
        W_skip: [d_out, d].
        transcodes: whether it reconstructs another site than it reads.
        per_token_norm: whether each input is normalised, (x - mean) / (sd + 1e-5) with the unbiased sd, and this is
            undone after decoding.

    Raises:
        CorruptError: a tensor of another shape, with a number that is not finite, or square and transposed; the
            message names it.
    """
    width, dim_out = W_dec.shape if W_dec.ndim == 2 else (0, 0)
    dim = W_enc.shape[-1] if transcodes else dim_out
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    shapes = {"W_enc": (width, dim), "b_enc": (width,), "W_dec": (width, dim_out), "b_dec": (dim_out,)}
    if W_skip is not None:
        tensors["W_skip"], shapes["W_skip"] = W_skip, (dim_out, dim)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            expected = f"{shapes[name]}, by W_dec [F, d] {tuple(W_dec.shape)}"
            raise CorruptError(f"{source}: {name} has the shape {tuple(tensor.shape)}, expected {expected}")
        if not all_finite(tensor):
            raise CorruptError(f"{source}: {name} has numbers that are not finite")
    if not transcodes:
        _check_orientation(W_enc, W_dec, source)
    model = Autoencoder(
        dim,
        width,
        code,
        dim_out=dim_out,
        transcodes=transcodes,
        skip=W_skip is not None,
        per_token_norm=per_token_norm,
        unit_atoms=False,
    )
    with torch.no_grad():
        model.W_enc.copy_(W_enc)
        # without `transcodes` the model subtracts b_dec from its inputs; where the tool does not, the bias undoes it
        differs = centred == transcodes
        shift = W_enc.to(b_enc) @ b_dec.to(b_enc) if differs else 0
        model.b_enc.copy_(b_enc - shift if centred else b_enc + shift)
        model.dictionary.W.copy_(W_dec)
        model.dictionary.b.copy_(b_dec)
        if W_skip is not None and model.W_skip is not None:
            model.W_skip.copy_(W_skip)
    return model.eval()


def _check_orientation(W_enc: Tensor, W_dec: Tensor, source: str) -> None:
    """Refuse square weights that are transposed, as far as they show it by themselves.

    Most tools keep atoms at one norm: columns of one norm and rows of many are atoms on their sides. And an encoder's
    row resembles its atom: rows that resemble nothing until one of the two is turned were turned before.

    Raises:
        CorruptError: says which tensor.
    """
    if W_enc.shape[0] != W_enc.shape[1] or W_enc.shape != W_dec.shape or len(W_dec) < 8:
        return
    rows, columns = (W_dec.norm(dim=axis) for axis in (1, 0))
    if columns.std() < 1e-3 * columns.mean() and rows.std() > 0.02 * rows.mean():
        raise CorruptError(
            f"{source}: W_dec {tuple(W_dec.shape)} is transposed: its columns have one norm, not its rows"
        )
    straight, turned = (
        torch.nn.functional.cosine_similarity(encoder, W_dec, dim=1).mean().item() for encoder in (W_enc, W_enc.T)
    )
    if turned > 0.25 and straight < turned / 5:
        raise CorruptError(
            f"{source}: W_enc or W_dec {tuple(W_dec.shape)} is transposed: rows and atoms have the mean cosine "
            f"{straight:.2f}, and {turned:.2f} once one is turned"
        )


def cross_layer(
    code: Code,
    origin: Origin,
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    source: str,
    W_skip: Tensor | None = None,
) -> Imported:
    """What a cross-layer transcoder reads at one layer i: a transcoder that writes to the layers i ... L - 1.

    f = code(W_enc x_i + b_enc); its part of the output of layer l is Σ_j f_j w_jl, and b_dec for l = i alone: the
    biases of later layers belong to what is read there, so that the parts of all layers sum to the whole.

    Args:
        code: of F latents.
        origin: with the one site it reads, and the L - i targets in order where they are known.
        W_enc: [F, d].
        b_enc: [F].
        W_dec: [F, L - i, d_out], atoms at layer i first.
        b_dec: [d_out], of layer i.
        source: for messages.
        W_skip: [d_out, d], to layer i.

    Raises:
        CorruptError: as `assemble`.
    """
    if W_dec.ndim != 3 or tuple(b_dec.shape) != tuple(W_dec.shape[2:]):
        shapes = f"W_dec {tuple(W_dec.shape)} and b_dec {tuple(b_dec.shape)}"
        raise CorruptError(f"{source}: {shapes}, expected [F, layers, d] and [d]")
    layers, dim_out = W_dec.shape[1:]
    bias = torch.zeros(layers * dim_out)
    bias[:dim_out] = b_dec
    if W_skip is not None:
        whole = torch.zeros(layers * dim_out, W_skip.shape[-1])
        whole[:dim_out] = W_skip
        W_skip = whole
    model = assemble(
        code,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec.flatten(1),
        b_dec=bias,
        W_skip=W_skip,
        centred=False,
        transcodes=True,
        source=source,
    )
    note = f"its part of the outputs of {layers} layers; the rest of those after the first is read at other layers"
    return Imported(model, origin._replace(notes=(*origin.notes, note)))


def jump_relu(theta: Tensor) -> JumpReLU:
    """pre · 1[pre > θ], thresholds θ [F]; a tool that clamps pre at 0 first has max(θ, 0)."""
    code = JumpReLU(len(theta))
    code.theta.data = theta.detach().float().clone()
    return code


def gated(r: Tensor, b_gate: Tensor, b_mag: Tensor) -> Gated:
    """1[π > 0] · relu(e^r Wx + b_mag), π = Wx + b_gate, all [F]: the file's b_enc is b_gate."""
    code = Gated(len(r))
    code.r.data, code.s.data = r.float().clone(), (b_mag - r.exp() * b_gate).float()
    return code


def two_sided(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> TwoSided:
    """For codes that keep the k largest |pre| with their signs: latents j (positive) and F + j (negative) in top k.

    The k largest |pre| are the k largest of pre and -pre, so that relu(topk) of these keeps the same, and the negative
    side of a latent has examples of its own. W_enc [F, d], b_enc [F], W_dec [F, d_out].
    """
    return TwoSided(*(torch.cat([tensor, -tensor]) for tensor in (W_enc, b_enc, W_dec)))


TWO_SIDED = "latents of either sign: latent j here is the positive side of the tool's latent j, F + j its negative side"
"""What an import with `two_sided` notes."""
