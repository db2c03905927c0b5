"""EleutherAI sparsify: a folder with `cfg.json` and `sae.safetensors`.

relu, then top k, of W (x - b_dec) + b; a transcoder reads x itself, and a skip connection adds W_skip x (sparsify 1.3,
`sparse_coder.py`). The folder's name is the hookpoint, a module of the base
model (`layers.6`, `layers.6.mlp`): an SAE reads its output, a transcoder its input.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble
from sae.interop.files import settings_in, shapes_in, take, tensors_in
from sae.modules.codes import TopK

WEIGHTS, SETTINGS = "sae.safetensors", "cfg.json"
LEGACY = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "decoder.weight": "W_dec"}
"""Names of tensors in older files -> today's."""


def recognises(path: Path) -> bool:
    names = {LEGACY.get(name, name) for name in shapes_in(path / WEIGHTS)} if path.is_dir() else set()
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= names


def read(path: Path) -> Imported:
    settings = settings_in(path / SETTINGS)
    tensors = {LEGACY.get(name, name): tensor for name, tensor in tensors_in(path / WEIGHTS).items()}
    if "W_dec" not in tensors:
        raise CorruptError(f"{path / WEIGHTS}: W_dec is missing: an encoder alone")
    width, dim = tensors["W_dec"].shape
    shapes = {"encoder.weight": (width, dim), "encoder.bias": (width,), "W_dec": (width, dim), "b_dec": (dim,)}
    if "W_skip" in tensors:
        shapes["W_skip"] = (dim, dim)
    weights = take(tensors, shapes, source=path / WEIGHTS)
    transcodes = bool(settings.get("transcode", False))
    _check(settings, dim, width, path)
    model = assemble(
        TopK(int(settings["k"])),
        W_enc=weights["encoder.weight"],
        b_enc=weights["encoder.bias"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        W_skip=weights.get("W_skip"),
        centred=not transcodes,
        transcodes=transcodes,
        source=str(path),
    )
    run = settings_in(path.parent / "config.json")
    module = module_of(path.name)
    origin = Origin(
        "sparsify",
        architecture="transcoder" if transcodes else "sae",
        model=run.get("model"),
        sites=() if module is None else (f"{module}:in" if transcodes else module,),
        targets=(module,) if transcodes and module is not None else (),
        context=run.get("ctx_len"),
        dataset=run.get("dataset"),
    )
    return Imported(model, origin)


def module_of(folder: str) -> str | None:
    """The module that a folder's name stands for, relative to the base model; None where the name is free."""
    if match := re.fullmatch(r"layers?[._](\d+)", folder):
        return f"layers.{match[1]}"
    return folder if re.search(r"\.\d+\.|embed", folder) else None


def _check(settings: dict[str, Any], dim: int, width: int, path: Path) -> None:
    """Refuse settings that contradict the weights, or that this reader does not know.

    Raises:
        ConfigError, CorruptError: names the setting.
    """
    where = path / SETTINGS
    if "k" not in settings:
        raise CorruptError(f"{where}: k is missing")
    if settings.get("signed"):
        raise ConfigError(f"{where}: signed latents cannot be held; expected signed false")
    if (activation := settings.get("activation", "topk")) != "topk":
        raise ConfigError(f"{where}: activation {activation!r} cannot be held; expected topk")
    if settings.get("d_in", dim) != dim:
        raise CorruptError(f"{where}: d_in is {settings['d_in']}, the weights have {dim}")
    latents = settings.get("num_latents") or dim * settings.get("expansion_factor", width / dim)
    if latents != width:
        raise CorruptError(f"{where}: {latents} latents, the weights have {width}")
