"""Qwen-Scope: `layerN.sae.pt`, a dict of W_enc [F, d], W_dec [d, F], b_enc and b_dec.

f = top k of relu(W_enc x + b_enc), x̂ = W_dec f + b_dec; nothing is subtracted from x (SAELens 6.54, its loader). The
file does not say k, the repository's name does: `SAE-Res-Qwen3-8B-Base-W64K-L0_50` has k = 50.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble
from sae.interop.files import shapes_in, take, tensors_in
from sae.modules.codes import TopK

NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}


def recognises(path: Path) -> bool:
    return re.fullmatch(r"layer\d+\.sae\.pt", path.name) is not None and set(shapes_in(path)) == NAMES


def read(path: Path) -> Imported:
    tensors = tensors_in(path)
    if "W_enc" not in tensors or tensors["W_enc"].ndim != 2:
        raise CorruptError(f"{path}: W_enc [F, d] is missing; it holds {', '.join(sorted(tensors))}")
    width, dim = tensors["W_enc"].shape
    shapes = {"W_enc": (width, dim), "W_dec": (dim, width), "b_enc": (width,), "b_dec": (dim,)}
    weights = take(tensors, shapes, source=path)
    name = re.search(r"SAE-Res-(.+?)-W\d+K-L0_(\d+)", str(path.absolute()))
    if name is None:
        raise ConfigError(
            f"{path}: the file does not say k; expected a folder of its repository's name, which ends so: -L0_50"
        )
    model = assemble(
        TopK(int(name[2])),
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"].T,
        b_dec=weights["b_dec"],
        centred=False,
        source=str(path),
    )
    layer = re.search(r"\d+", path.name)
    assert layer is not None
    origin = Origin("Qwen-Scope", architecture="topk", model=f"Qwen/{name[1]}", sites=(f"resid_post.{layer[0]}",))
    return Imported(model, origin)
