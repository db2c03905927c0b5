"""Goodfire: a dict of encoder_linear.* and decoder_linear.* as `.pt` or `.pth`.

f = relu(W_enc x + b_enc), x̂ = W_dec f + b_dec; nothing is subtracted from x (SAELens 6.54, its loader).
"""

from __future__ import annotations

from pathlib import Path

from sae.base.files import CorruptError
from sae.interop import Imported, Origin, assemble
from sae.interop.files import shapes_in, take, tensors_in
from sae.modules.codes import ReLU

ENCODER, DECODER = "encoder_linear", "decoder_linear"


def recognises(path: Path) -> bool:
    return {f"{ENCODER}.weight", f"{DECODER}.weight"} <= set(shapes_in(path))


def read(path: Path) -> Imported:
    tensors = tensors_in(path)
    if tensors.get(f"{ENCODER}.weight") is None or tensors[f"{ENCODER}.weight"].ndim != 2:
        raise CorruptError(f"{path}: {ENCODER}.weight [F, d] is missing; it holds {', '.join(sorted(tensors))}")
    width, dim = tensors[f"{ENCODER}.weight"].shape
    shapes = {
        f"{ENCODER}.weight": (width, dim),
        f"{ENCODER}.bias": (width,),
        f"{DECODER}.weight": (dim, width),
        f"{DECODER}.bias": (dim,),
    }
    weights = take(tensors, shapes, source=path)
    model = assemble(
        ReLU(),
        W_enc=weights[f"{ENCODER}.weight"],
        b_enc=weights[f"{ENCODER}.bias"],
        W_dec=weights[f"{DECODER}.weight"].T,
        b_dec=weights[f"{DECODER}.bias"],
        centred=False,
        source=str(path),
    )
    return Imported(model, Origin("Goodfire", architecture="relu"))
