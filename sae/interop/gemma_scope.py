"""Gemma Scope on Gemma 2: a folder with `params.npz`.

f = JumpReLU(x W_enc + b_enc), x̂ = f W_dec + b_dec, W_enc [d, F], W_dec [F, d_out], a threshold a latent; nothing is
subtracted from x (Lieberum et al. 2024, arXiv 2408.05147). Some files spell names in lower case. What the file does not
say is in the folders' names:

- `embedding/...`: trained on embeddings before Gemma multiplies them by √d, so that here W_enc is divided by √d, W_dec
  and b_dec are multiplied by it, and it reads the residual before the first block.
- `gemma-scope-...-transcoders/...`: x is the output of the norm before the MLP without its gain (model card of
  google/gemma-scope-2b-pt-transcoders); see `Origin.before_gain`.

SAELens 6.54 leaves b_dec of an embedding as it is, which is not what follows from its own √d.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble, jump_relu
from sae.interop.files import shapes_in, take, tensors_in

WEIGHTS = "params.npz"
NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}


def recognises(path: Path) -> bool:
    return NAMES - {"threshold"} <= {name.lower() for name in shapes_in(_file(path))} and _file(path).name == WEIGHTS


def read(path: Path) -> Imported:
    where = _file(path)
    tensors = {name.lower(): tensor for name, tensor in tensors_in(where).items()}
    factor = tensors.get("scaling_factor")
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        raise ConfigError(f"{where}: scaling_factor is not 1; what it scales is nowhere documented")
    if "w_dec" not in tensors or tensors["w_dec"].ndim != 2:
        raise CorruptError(f"{where}: w_dec [F, d] is missing; it holds {', '.join(sorted(tensors))}")
    width, dim_out = tensors["w_dec"].shape
    transcodes = any("transcoder" in part for part in where.parts)
    dim = tensors["w_enc"].shape[0] if transcodes and "w_enc" in tensors else dim_out
    shapes = {"w_enc": (dim, width), "w_dec": (width, dim_out), "b_enc": (width,), "b_dec": (dim_out,)}
    weights = take(tensors, {**shapes, "threshold": (width,)}, source=where, ignore=("scaling_factor",))
    W_enc, W_dec, b_dec = weights["w_enc"].T, weights["w_dec"], weights["b_dec"]
    notes = []
    if "embedding" in where.parts:
        W_enc, W_dec, b_dec = W_enc / dim**0.5, W_dec * dim**0.5, b_dec * dim**0.5
        notes.append("trained on embeddings before their factor √d, which is folded in here")
    model = assemble(
        # the authors clamp at 0 before they compare
        jump_relu(weights["threshold"].clamp_min(0)),
        W_enc=W_enc,
        b_enc=weights["b_enc"],
        W_dec=W_dec,
        b_dec=b_dec,
        centred=False,
        transcodes=transcodes,
        source=str(where),
    )
    layer = re.search(r"layer_(\d+)", str(where.parent))
    origin = Origin(
        "Gemma Scope",
        architecture="jumprelu transcoder" if transcodes else "jumprelu",
        sites=(f"mlp_in.{layer[1]}",) if transcodes and layer else (),
        targets=(f"mlp_out.{layer[1]}",) if transcodes and layer else (),
        before_gain=transcodes,
        notes=tuple(notes),
    )
    return Imported(model, origin)


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path
