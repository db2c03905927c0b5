"""EleutherAI sparsify: a folder with `cfg.json` and `sae.safetensors`.

f = topk(relu(W (x - b_dec) + b)), x̂ = Σ f w + b_dec (sparsify 1.3, `sparse_coder.py`); where `transcode` is set it
reads x itself, and a skip connection adds W_skip x. The folder's name is the hookpoint, a module of the base model
(`layers.6`, `layers.6.mlp`): an SAE reads its output, a transcoder its input. Older versions had `signed` (the k
largest |pre|, with their signs) and other names of tensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import TWO_SIDED, Imported, Origin, assemble, two_sided
from sae.interop.files import settings_in, shapes_in, take, tensors_in, text_of
from sae.modules.codes import TopK

WEIGHTS, SETTINGS = "sae.safetensors", "cfg.json"
LEGACY = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
"""Names of tensors in older files -> today's; the matrices may be transposed."""


def recognises(path: Path) -> bool:
    path = _folder(path)
    names = {LEGACY.get(name, name) for name in shapes_in(path / WEIGHTS)} if path.is_dir() else set()
    return {"encoder.weight", "encoder.bias"} <= names and (path / SETTINGS).is_file()


def read(path: Path) -> Imported:
    path = _folder(path)
    settings, run = settings_in(path / SETTINGS), _run(path)
    weights = _weights(path, settings)
    # the run's settings alone said so once; the autoencoder of that time subtracted b_dec all the same
    transcodes = bool(settings.get("transcode", run.get("transcode", False)))
    rows = (weights["encoder.weight"], weights["encoder.bias"], weights["W_dec"])
    notes = []
    if settings.get("signed"):
        rows = two_sided(*rows)
        notes.append(TWO_SIDED)
    W_enc, b_enc, W_dec = rows
    model = assemble(
        TopK(int(settings["k"])),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=weights["b_dec"],
        W_skip=weights.get("W_skip"),
        centred=not settings.get("transcode", False),
        transcodes=transcodes,
        source=str(path),
    )
    module = module_of(path.parent.name if _is_seed(path) else path.name)
    excluded = run.get("exclude_tokens")
    origin = Origin(
        "sparsify",
        architecture="transcoder" if transcodes else "sae",
        model=run.get("model"),
        sites=() if module is None else (f"{module}:in" if transcodes else module,),
        targets=(module,) if transcodes and module is not None else (),
        context=run.get("ctx_len"),
        dataset=text_of(run.get("dataset")),
        left_out=f"tokens {excluded}" if excluded else None,
        notes=tuple(notes),
    )
    return Imported(model, origin)


def module_of(folder: str) -> str | None:
    """The module that a folder's name stands for, relative to the base model; None where the name is free."""
    if match := re.fullmatch(r"layers?[._](\d+)", folder):
        return f"layers.{match[1]}"
    return folder if re.search(r"\.\d+(\.|$)|embed", folder) else None


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


def _is_seed(path: Path) -> bool:
    """Whether a training with several seeds made this folder, inside that of its hookpoint."""
    return re.fullmatch(r"seed\d+", path.name) is not None


def _run(path: Path) -> dict[str, Any]:
    """The settings of the whole training, one level above the hookpoint's folder."""
    return settings_in((path.parent if _is_seed(path) else path).parent / "config.json")


def _weights(path: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors under today's names, encoder.weight and W_dec as [F, d].

    Raises:
        ConfigError, CorruptError: a tensor or a setting that contradicts them, by its name.
    """
    found = tensors_in(path / WEIGHTS)
    tensors = {LEGACY.get(name, name): tensor for name, tensor in found.items()}
    if "W_dec" not in tensors:
        raise CorruptError(f"{path / WEIGHTS}: W_dec is missing: an encoder alone")
    if missing := [name for name in ("encoder.bias", "b_dec") if name not in tensors]:
        raise CorruptError(f"{path / WEIGHTS}: {', '.join(missing)} is missing; it holds {', '.join(sorted(found))}")
    width, dim = len(tensors["encoder.bias"]), len(tensors["b_dec"])
    for old, name in LEGACY.items():
        if old in found and found[old].shape == (dim, width):
            tensors[name] = found[old].T
    shapes = {"encoder.weight": (width, dim), "encoder.bias": (width,), "W_dec": (width, dim), "b_dec": (dim,)}
    if "W_skip" in tensors:
        shapes["W_skip"] = (dim, dim)
    weights = take(tensors, shapes, source=path / WEIGHTS)
    _check(settings, dim, width, path)
    if bool(settings.get("skip_connection", "W_skip" in tensors)) != ("W_skip" in tensors):
        raise CorruptError(f"{path / SETTINGS}: skip_connection is {settings['skip_connection']}, the weights differ")
    return weights


def _check(settings: dict[str, Any], dim: int, width: int, path: Path) -> None:
    """Refuse settings that contradict the weights, or that this reader does not know.

    Raises:
        ConfigError, CorruptError: names the setting.
    """
    where = path / SETTINGS
    if settings.get("k") is None:
        raise CorruptError(f"{where}: k is missing")
    if (activation := settings.get("activation", "topk")) != "topk":
        raise ConfigError(f"{where}: activation {activation!r} cannot be held; expected topk")
    if settings.get("d_in", dim) != dim:
        raise CorruptError(f"{where}: d_in is {settings['d_in']}, the weights have {dim}")
    latents = settings.get("num_latents") or dim * settings.get("expansion_factor", width / dim)
    if latents != width:
        raise CorruptError(f"{where}: {latents} latents, the weights have {width}")
