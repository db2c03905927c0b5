"""Other tools' formats, one file each: `read` opens an SAE that another tool saved, the exports write for other tools.

    imported = read("their_sae")                 # the format is recognised; format="NAME" overrules
    codes = imported.model.encode(x)             # x [N, d]
    imported = read("their_clt:3")               # what a cross-layer transcoder reads at layer 3

A format that can be read is a module with `recognises(path) -> bool` and `read(path) -> Imported`, and its line in
`READERS`. CONTRIBUTING.md shows a whole one. A format that holds several layers in one folder has, besides,
`read_layer(path, layer) -> Imported`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop.files import check_readable
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Code, Gated, JumpReLU

READERS: dict[str, str] = {
    "circuit_tracer": "sae.interop.circuit_tracer",
    "dictionary_learning": "sae.interop.dictionary_learning",
    "gemma_scope": "sae.interop.gemma_scope",
    "gemma_scope_2": "sae.interop.gemma_scope_2",
    "goodfire": "sae.interop.goodfire",
    "llama_scope": "sae.interop.llama_scope",
    "llamascopium": "sae.interop.llamascopium",
    "openai": "sae.interop.openai",
    "qwen_scope": "sae.interop.qwen_scope",
    "saelens": "sae.interop.saelens",
    "sparsify": "sae.interop.sparsify",
    "temporal": "sae.interop.temporal",
}
"""Format -> the module that reads it, imported when it is needed."""


class TwoSided(NamedTuple):
    """Twice as many latents, each with one sign; see `two_sided`."""

    W_enc: Tensor
    """[2 F, d]"""
    b_enc: Tensor
    """[2 F]"""
    W_dec: Tensor
    """[2 F, d_out]"""


class Origin(NamedTuple):
    """What another tool's files say beside their weights; it is kept in the run's config.json under "imported"."""

    tool: str
    """The tool, or the set of published autoencoders."""
    architecture: str = ""
    """As the tool calls it."""
    model: str | None = None
    """Hub id of the language model."""
    sites: tuple[str, ...] = ()
    """Where it reads: names of sites in our spelling, or module paths."""
    targets: tuple[str, ...] = ()
    """Where its reconstruction belongs; empty for `sites` themselves."""
    bos: bool | None = None
    """Whether contexts began with BOS; None where nothing says so."""
    context: int | None = None
    """Tokens a context."""
    dataset: str | None = None
    """Text that it was trained on."""
    normalisation: str | None = None
    """What the tool does to its inputs, in its own word; it is part of the model that `read` returns."""
    left_out: str | None = None
    """Tokens that it was not trained on."""
    licence: str | None = None
    before_gain: bool = False
    """Whether it reads the output of the norm before the MLP without the norm's gain, while the site has the gain.

    An import with a language model divides the weights by the gain (`sae.interop.gain`), after which this is false."""
    notes: tuple[str, ...] = ()
    """What a reader of its numbers must know: a convention of its inputs, a threshold that was filled in."""


class Imported(NamedTuple):
    """An autoencoder from another tool's file."""

    model: Autoencoder
    """In float32, ready for `encode` and `decode`."""
    origin: Origin


def read(path: str | Path, format: str = "auto") -> Imported:
    """The autoencoder in another tool's file or folder.

    Args:
        path: file or folder; `folder:LAYER` where the format holds one autoencoder for each layer.
        format: a key of `READERS`; "auto" takes the one format that recognises the path.

    Raises:
        ConfigError: nothing is there, the format is unknown, or not exactly one format recognises the path.
        CorruptError: the weights do not have the shapes of an autoencoder.
    """
    place, layer = split_layer(path)
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    format = recognised(path) if format == "auto" else format
    module = _module(format)
    if layer is None:
        return module.read(path)
    if not hasattr(module, "read_layer"):
        raise ConfigError(f"{path}:{layer}: {format} has no layers to select; expected {path}")
    return module.read_layer(path, layer)


def split_layer(source: str | Path) -> tuple[str, int | None]:
    """A source's place and the layer that a colon and a number at its end select; None without them."""
    match = re.fullmatch(r"(.+):(\d+)", str(source))
    if match is None or Path(source).expanduser().exists():
        return str(source), None
    return match[1], int(match[2])


def recognised(path: Path) -> str:
    """The one format that recognises a path.

    Raises:
        ConfigError: none does, or several.
        CorruptError: none does, and a file there is damaged.
    """
    matches = matching(path)
    if not matches:
        check_readable(path)
    if len(matches) != 1:
        reason = f"could be any of {', '.join(matches)}" if matches else "is in no format that can be read"
        raise ConfigError(f"{path}: {reason}; name the format, one of: {_known()}")
    return matches[0]


def matching(path: Path) -> list[str]:
    """The formats that recognise a path."""
    return [name for name in READERS if _module(name).recognises(path)]


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
        if not torch.isfinite(tensor).all():
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


def _module(format: str) -> Any:
    if format not in READERS:
        raise ConfigError(f"format {format!r} is unknown; known: {_known()}")
    return importlib.import_module(READERS[format])


def _known() -> str:
    return ", ".join(sorted(READERS)) or "none"
