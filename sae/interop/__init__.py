"""Other tools' formats, one file each: `read` opens an SAE that another tool saved, the exports write for other tools.

    imported = read("their_sae.npz")             # the format is recognised; format="NAME" overrules
    codes = imported.model.encode(x)             # x [N, d]

A format that can be read is a module with `recognises(path) -> bool` and `read(path) -> Imported`, and its line in
`READERS`. CONTRIBUTING.md shows a whole one.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Code

READERS: dict[str, str] = {}
"""Format -> the module that reads it, imported when it is needed."""


class Imported(NamedTuple):
    """An autoencoder from another tool's file."""

    model: Autoencoder
    """In float32, ready for `encode` and `decode`."""
    record: dict[str, Any]
    """What the file says beside its weights (tool, model, site, ...), as JSON values."""


def read(path: str | Path, format: str = "auto") -> Imported:
    """The autoencoder in another tool's file or folder.

    Args:
        path: file or folder.
        format: a key of `READERS`; "auto" takes the one format that recognises the path.

    Raises:
        ConfigError: nothing is there, the format is unknown, or not exactly one format recognises the path.
        CorruptError: the weights do not have the shapes of an autoencoder.
    """
    path = Path(path).expanduser()
    known = ", ".join(sorted(READERS)) or "none"
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if format == "auto":
        matches = [name for name in READERS if _module(name).recognises(path)]
        if len(matches) != 1:
            reason = f"could be any of {', '.join(matches)}" if matches else "is in no format that can be read"
            raise ConfigError(f"{path}: {reason}; name the format, one of: {known}")
        format = matches[0]
    if format not in READERS:
        raise ConfigError(f"format {format!r} is unknown; known: {known}")
    return _module(format).read(path)


def assemble(
    code: Code, *, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, centred: bool, source: str
) -> Autoencoder:
    """f = code(W_enc x + b_enc), or code(W_enc (x - b_dec) + b_enc) if `centred`; x̂ = Σ_j f_j w_j + b_dec.

    Atoms keep the norms that they have in the file, so that values equal the other tool's.

    Args:
        code: with relu, top k, or thresholds of F latents.
        W_enc: [F, d], one row a latent.
        b_enc: [F].
        W_dec: atoms [F, d].
        b_dec: [d].
        centred: whether the tool subtracts b_dec from its inputs before it encodes them.
        source: file or folder, for messages.

    Raises:
        CorruptError: a tensor of another shape, or with a number that is not finite; the message names it.
    """
    width, dim = W_dec.shape if W_dec.ndim == 2 else (0, 0)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    shapes = {"W_enc": (width, dim), "b_enc": (width,), "W_dec": (width, dim), "b_dec": (dim,)}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            expected = f"{shapes[name]}, by W_dec [F, d] {tuple(W_dec.shape)}"
            raise CorruptError(f"{source}: {name} has the shape {tuple(tensor.shape)}, expected {expected}")
        if not torch.isfinite(tensor).all():
            raise CorruptError(f"{source}: {name} has numbers that are not finite")
    model = Autoencoder(dim, width, code, unit_atoms=False)
    with torch.no_grad():
        model.W_enc.copy_(W_enc)
        # the autoencoder subtracts b_dec from its inputs; for a tool that does not, the bias takes it back
        model.b_enc.copy_(b_enc if centred else b_enc + W_enc.to(b_enc) @ b_dec.to(b_enc))
        model.dictionary.W.copy_(W_dec)
        model.dictionary.b.copy_(b_dec)
    return model.eval()


def _module(format: str) -> Any:
    return importlib.import_module(READERS[format])
