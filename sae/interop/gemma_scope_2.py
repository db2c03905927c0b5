"""Gemma Scope 2 on Gemma 3: a folder with `params.safetensors` and `config.json`; cross-layer, a file a layer.

f = JumpReLU(x w_enc + b_enc), x̂ = f w_dec + b_dec (+ x affine_skip_connection), w_enc [d, F], w_dec [F, d_out], the
skip [d, d_out]. The skip multiplies x from the right, untransposed: so circuit-tracer 0.5
(`load_gemma_scope_2_transcoder`) and SAELens 6.54.12 compute it, and so it explains more of the MLP's output than its
transpose does (on the 27B model .69 of its energy against .38). Transcoders read the norm's output with its gain, which
is the MLP's own input.

A cross-layer transcoder is `clt/.../params_layer_N.safetensors` with w_dec [F, L, d]: what is read at layer N is
written to the layers N and later, and b_dec and the skip belong to layer N.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.files import CorruptError
from sae.interop import Imported, Origin, assemble, cross_layer, jump_relu
from sae.interop.files import settings_in, shapes_in, take, tensors_in
from sae.interop.origin import WITH_GAIN

WEIGHTS, SETTINGS = "params.safetensors", "config.json"
NAMES = {"w_enc", "w_dec", "b_enc", "b_dec"}
SKIP = "affine_skip_connection"
HOOKS = {
    "output": "resid_post.{}",
    "pre_feedforward_layernorm.output": "mlp_in.{}",
    "post_feedforward_layernorm.output": "mlp_out.{}",
    "self_attn.o_proj.input": "layers.{}.self_attn.o_proj:in",
}
"""What config.json calls a place in layer N -> the same in our spelling."""


def recognises(path: Path) -> bool:
    return set(shapes_in(_file(path))) >= NAMES


def read(path: Path) -> Imported:
    where = _file(path)
    settings = settings_in(where.parent / SETTINGS)
    if settings.get("architecture", "jump_relu") != "jump_relu":
        raise CorruptError(
            f"{where.parent / SETTINGS}: architecture is {settings['architecture']!r}, expected 'jump_relu'"
        )
    tensors = tensors_in(where)
    if "w_dec" not in tensors or "w_enc" not in tensors or tensors["w_enc"].ndim != 2:
        raise CorruptError(f"{where}: w_enc [d, F] and w_dec are missing; it holds {', '.join(sorted(tensors))}")
    dim, width = tensors["w_enc"].shape
    decoder = (width, *tensors["w_dec"].shape[1:])
    shapes = {"w_enc": (dim, width), "w_dec": decoder, "b_enc": (width,), "b_dec": decoder[-1:], "threshold": (width,)}
    if SKIP in tensors:
        shapes[SKIP] = (dim, decoder[-1])
    elif settings.get("affine_connection"):
        raise CorruptError(f"{where}: {SKIP} ({dim}, {decoder[-1]}) is missing; {SETTINGS} has affine_connection")
    weights = take(tensors, shapes, source=where)
    if len(decoder) == 3:
        return _layer(weights, settings, where)
    sites, targets = _place(settings.get("hf_hook_point_in")), _place(settings.get("hf_hook_point_out"))
    transcodes = SKIP in weights or (bool(targets) and targets != sites) or "transcoder" in where.parent.parent.name
    model = assemble(
        jump_relu(weights["threshold"].clamp_min(0)),
        W_enc=weights["w_enc"].T,
        b_enc=weights["b_enc"],
        W_dec=weights["w_dec"],
        b_dec=weights["b_dec"],
        W_skip=weights[SKIP].T if SKIP in weights else None,
        centred=False,
        transcodes=transcodes,
        source=str(where),
    )
    return Imported(
        model, _origin(settings, "transcoder" if transcodes else "sae", sites, targets if transcodes else ())
    )


def _layer(weights: dict[str, Tensor], settings: dict[str, Any], where: Path) -> Imported:
    """One layer of a cross-layer transcoder."""
    match = re.fullmatch(r"params_layer_(\d+)", where.stem)
    if match is None:
        raise CorruptError(f"{where}: w_dec has several layers; expected a name such as params_layer_3.safetensors")
    layer, layers = int(match[1]), weights["w_dec"].shape[1]
    if layer >= layers:
        raise CorruptError(f"{where}: w_dec {tuple(weights['w_dec'].shape)} has {layers} layers")
    targets = tuple(f"mlp_out.{number}" for number in range(layer, layers))
    return cross_layer(
        jump_relu(weights["threshold"].clamp_min(0)),
        _origin(settings, "cross-layer transcoder", (f"mlp_in.{layer}",), targets),
        W_enc=weights["w_enc"].T,
        b_enc=weights["b_enc"],
        W_dec=weights["w_dec"][:, layer:],
        b_dec=weights["b_dec"],
        W_skip=weights[SKIP].T if SKIP in weights else None,
        source=str(where),
    )


def read_layer(path: Path, layer: int) -> Imported:
    return read(path / f"params_layer_{layer}.safetensors")


def _origin(settings: dict[str, Any], architecture: str, sites: tuple[str, ...], targets: tuple[str, ...]) -> Origin:
    return Origin(
        "Gemma Scope 2",
        architecture=f"jumprelu {architecture}",
        model=_model(settings.get("model_name")),
        sites=sites,
        targets=targets,
        notes=(WITH_GAIN,) if targets else (),
    )


def _place(hook: str | None) -> tuple[str, ...]:
    """The site that config.json names, such as `model.layers.3.self_attn.o_proj.input`; empty for None."""
    if hook is None:
        return ()
    match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.(.+)", hook)
    if match is None:
        return (hook.removesuffix(".output").replace(".input", ":in"),)
    layer, place = match.groups()
    if place in HOOKS:
        return (HOOKS[place].format(layer),)
    return (f"layers.{layer}.{place.removesuffix('.output').replace('.input', ':in')}",)


def _model(name: str | None) -> str | None:
    """The hub id of the language model; the files leave out the organisation, and write gemma-v3 for gemma-3."""
    if name is None:
        return None
    name = name.removeprefix("google/").replace("gemma-v3", "gemma-3")
    # the smallest base model has no suffix on the hub
    return f"google/{name.removesuffix('-pt') if '270m' in name else name}"


def _file(path: Path) -> Path:
    """The file of weights; of a folder of a cross-layer transcoder its first layer's."""
    if not path.is_dir():
        return path
    return path / WEIGHTS if (path / WEIGHTS).exists() else path / "params_layer_0.safetensors"
