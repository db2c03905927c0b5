"""OpenMOSS' llamascopium (Language-Model-SAEs): a folder with `config.json` and `sae_weights.safetensors` or `.pt`.

    sae         f = act(x W_E + b_E), x̂ = f W_D + b_D, from hook_point_in to hook_point_out
    crosscoder  pre = Σ_h x_h W_E[h] + b_E[h], f_h = act(pre), x̂_h = f_h W_D[h] + b_D[h]
    clt         at every layer i an SAE, which writes to the layers i ... L - 1; `folder:i` selects it

(llamascopium 2.0, `models/*.py`.) With `sparsity_include_decoder_norm`, act is replaced by act(pre ||w||) / ||w||. With
`norm_activation` dataset-wise all activations are multiplied by sqrt(d) / (their average norm at the hook), which is
built into the weights here; latents keep the values that its `encode` gives for normalised activations. (Its own fold
leaves the thresholds of an SAE as they are, which changes what is active.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import BEFORE_GAIN, Imported, Origin, assemble, cross_layer, jump_relu
from sae.interop.files import settings_in, shapes_in, take, tensors_in
from sae.modules.codes import Code, ReLU, TopK

SETTINGS = "config.json"
PLACES = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
REFUSED = {
    "lorsa": "it replaces attention: its codes depend on earlier tokens",
    "molt": "its latents are linear maps of the input, not atoms",
}
AVERAGE = "dataset_average_activation_norm"
THRESHOLD = "activation_function.log_jumprelu_threshold"
BY_NORM = "a latent's value here is its value there times the norm of its atom, by which it is selected"


def recognises(path: Path) -> bool:
    try:
        settings = settings_in(path / SETTINGS) if path.is_dir() else {}
    except CorruptError:
        return False
    if settings.get("sae_type") in REFUSED:
        return True
    file = _weights_file(path) if "sae_type" in settings else None
    return file is not None and (file.suffix == ".dcp" or "W_E" in {_plain(name) for name in shapes_in(file)})


def read(path: Path) -> Imported:
    settings = _settings(path)
    kind = settings["sae_type"]
    if kind == "clt":
        last = len(settings["hook_points_in"]) - 1
        raise ConfigError(f"{path}: a cross-layer transcoder; name a layer, {path}:0 to {path}:{last}")
    return _sae(path, settings) if kind == "sae" else _crosscoder(path, settings)


def read_layer(path: Path, layer: int) -> Imported:
    """What a cross-layer transcoder reads at one layer, and its part of the outputs of that layer and later ones."""
    settings = _settings(path)
    if settings["sae_type"] != "clt":
        raise ConfigError(f"{path}:{layer}: sae_type {settings['sae_type']!r} has no layers to select; expected {path}")
    hooks_in, hooks_out = settings["hook_points_in"], settings["hook_points_out"]
    layers, dim, width = len(hooks_in), int(settings["d_model"]), _width(settings)
    if layer >= layers:
        raise ConfigError(f"{path}:{layer}: no such layer; expected 0 to {layers - 1}")
    targets = range(layer, layers)
    rows: dict[str, int | None] = {"W_E": layer, "b_E": layer, **{f"W_D.{target}": layer for target in targets}}
    shapes: dict[str, tuple[int, ...]] = {"W_E": (dim, width), "b_E": (width,)}
    shapes |= {f"W_D.{target}": (width, dim) for target in targets}
    if settings.get("use_decoder_bias", True):
        rows[f"b_D.{layer}"], shapes[f"b_D.{layer}"] = None, (dim,)
    if settings.get("act_fn", "relu") == "jumprelu":
        rows[THRESHOLD], shapes[THRESHOLD] = layer, (width,)
    weights = _weights(path, shapes, [hooks_in[layer], *(hooks_out[target] for target in targets)], rows)
    scale_in = _scale(path, settings, weights, hooks_in[layer])
    scales_out = torch.tensor([_scale(path, settings, weights, hooks_out[target]) for target in targets])
    W_dec = torch.stack([weights[f"W_D.{target}"] for target in targets], dim=1)  # [F, layers, d]
    gated = _gated(path, settings, _theta(weights), weights["W_E"].T, weights["b_E"], W_dec)
    return cross_layer(
        gated.code,
        _origin(settings, (hooks_in[layer],), tuple(hooks_out[target] for target in targets), gated.notes),
        W_enc=gated.W_enc * scale_in,
        b_enc=gated.b_enc,
        W_dec=gated.W_dec / scales_out[:, None],
        b_dec=weights.get(f"b_D.{layer}", torch.zeros(dim)) / scales_out[0],
        source=f"{path}:{layer}",
    )


def _sae(path: Path, settings: dict[str, Any]) -> Imported:
    dim, width = int(settings["d_model"]), _width(settings)
    hook_in, hook_out = settings["hook_point_in"], settings["hook_point_out"]
    shapes: dict[str, tuple[int, ...]] = {"W_E": (dim, width), "b_E": (width,), "W_D": (width, dim)}
    if settings.get("use_decoder_bias", True):
        shapes["b_D"] = (dim,)
    if settings.get("act_fn", "relu") == "jumprelu":
        shapes[THRESHOLD] = (width,)
    weights = _weights(path, shapes, [hook_in, hook_out])
    scale_in, scale_out = (_scale(path, settings, weights, hook) for hook in (hook_in, hook_out))
    gated = _gated(path, settings, _theta(weights), weights["W_E"].T, weights["b_E"], weights["W_D"])
    model = assemble(
        gated.code,
        W_enc=gated.W_enc * scale_in,
        b_enc=gated.b_enc,
        W_dec=gated.W_dec / scale_out,
        b_dec=weights.get("b_D", torch.zeros(dim)) / scale_out,
        centred=False,
        transcodes=hook_in != hook_out,
        source=str(path),
    )
    return Imported(model, _origin(settings, (hook_in,), (hook_out,) if hook_in != hook_out else (), gated.notes))


def _crosscoder(path: Path, settings: dict[str, Any]) -> Imported:
    """A crosscoder of relu is one of F latents; with thresholds, which count each site's norm, of F latents a site."""
    hooks, dim, width = settings["hook_points"], int(settings["d_model"]), _width(settings)
    heads, act = len(hooks), settings.get("act_fn", "relu")
    if act not in ("relu", "jumprelu"):
        raise ConfigError(
            f"{path / SETTINGS}: act_fn {act!r} cannot be held in a crosscoder, which selects at each site"
        )
    shapes: dict[str, tuple[int, ...]] = {
        "W_E": (heads, dim, width),
        "b_E": (heads, width),
        "W_D": (heads, width, dim),
        "b_D": (heads, dim),
    }
    if act == "jumprelu":
        shapes[THRESHOLD] = (width,)
    weights = _weights(path, shapes, hooks)
    scales = torch.tensor([_scale(path, settings, weights, hook) for hook in hooks])
    W_enc = (weights["W_E"] * scales[:, None, None]).permute(2, 0, 1).flatten(1)
    b_enc = weights["b_E"].sum(0)
    W_dec = (weights["W_D"] / scales[:, None, None]).permute(1, 0, 2)  # [F, heads, d]
    code, notes = ReLU(), ()
    if (theta := _theta(weights)) is not None:
        code = jump_relu(_by_norm(theta, weights["W_D"].norm(dim=2)).flatten())
        apart = torch.eye(heads)[:, None, :, None]  # latent h F + j writes at site h alone
        W_dec = (apart * W_dec).flatten(0, 1)
        W_enc, b_enc = W_enc.repeat(heads, 1), b_enc.repeat(heads)
        notes = (f"latent h x {width} + j is its latent j at site h: each site has its own threshold",)
    model = assemble(
        code,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec.flatten(1),
        b_dec=(weights["b_D"] / scales[:, None]).flatten(),
        centred=False,
        source=str(path),
    )
    return Imported(model, _origin(settings, tuple(hooks), (), notes))


def _settings(path: Path) -> dict[str, Any]:
    """The settings, of a kind that can be held.

    Raises:
        ConfigError: one that cannot, by its name.
        CorruptError: a setting is missing.
    """
    where, settings = path / SETTINGS, settings_in(path / SETTINGS)
    kind = settings.get("sae_type")
    if kind in REFUSED:
        raise ConfigError(f"{where}: sae_type {kind!r} cannot be held: {REFUSED[kind]}")
    hooks = {
        "sae": ("hook_point_in", "hook_point_out"),
        "crosscoder": ("hook_points",),
        "clt": ("hook_points_in", "hook_points_out"),
    }
    if kind not in hooks:
        raise ConfigError(f"{where}: sae_type {kind!r} is unknown; known: {', '.join(hooks)}")
    if missing := [name for name in ("d_model", "expansion_factor", *hooks[kind]) if name not in settings]:
        raise CorruptError(f"{where}: {', '.join(missing)} is missing")
    if settings.get("use_glu_encoder"):
        raise ConfigError(f"{where}: use_glu_encoder cannot be held: its encoder is a product of two")
    if (norm := settings.get("norm_activation", "dataset-wise")) not in ("dataset-wise", "inference"):
        raise ConfigError(f"{where}: norm_activation {norm!r} cannot be held: it depends on each input's norm")
    return settings


def _width(settings: Mapping[str, Any]) -> int:
    return int(settings["d_model"] * settings["expansion_factor"])


def _weights_file(path: Path) -> Path | None:
    files = [path / f"{place}{suffix}" for place in PLACES for suffix in (".safetensors", ".pt", ".dcp")]
    return next((file for file in files if file.exists()), None)


def _plain(name: str) -> str:
    """A tensor's name without the name of the dict that a .pt file wraps it in."""
    return name.removeprefix("sae.")


def _weights(
    path: Path, shapes: dict[str, tuple[int, ...]], hooks: list[str], rows: Mapping[str, int | None] | None = None
) -> dict[str, Tensor]:
    """The tensors of these shapes, and the average norm at each hook that has one; with `rows`, parts of tensors.

    Raises:
        ConfigError: a checkpoint of several processes, or an encoder that is a product of two.
        CorruptError: names a tensor and its shapes.
    """
    file = _weights_file(path)
    if file is None:
        raise CorruptError(f"{path}: holds none of {', '.join(f'{place}.safetensors' for place in PLACES)}")
    if file.suffix == ".dcp":
        raise ConfigError(f"{file}: a checkpoint of several processes; save it as .safetensors with llamascopium")
    norms = [f"{AVERAGE}.{hook}" for hook in dict.fromkeys(hooks)]
    if rows is not None:
        wanted = {**rows, **dict.fromkeys(norms)}
        prefix = "sae." if file.suffix == ".pt" else ""
        tensors = tensors_in(file, {prefix + name: row for name, row in wanted.items()})
    else:
        tensors = tensors_in(file)
    tensors = {_plain(name): tensor for name, tensor in tensors.items()}
    if "W_E_glu" in tensors:
        raise ConfigError(f"{file}: W_E_glu cannot be held: its encoder is a product of two")
    if THRESHOLD in tensors:  # the logarithm of 0, which SAELens' thresholds may be, is not finite
        tensors[THRESHOLD] = tensors[THRESHOLD].clamp_min(-1e4)
    shapes = shapes | {name: () for name in norms if name in tensors}
    return take(tensors, shapes, source=file)


def _scale(path: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor], hook: str) -> float:
    """What activations at a hook are multiplied by: sqrt(d) / average norm; 1 where it is in the weights already."""
    if settings.get("norm_activation", "dataset-wise") == "inference":
        return 1.0
    if f"{AVERAGE}.{hook}" not in weights:
        raise CorruptError(f"{path}: {AVERAGE}.{hook} () is missing, and norm_activation is dataset-wise")
    return math.sqrt(settings["d_model"]) / float(weights[f"{AVERAGE}.{hook}"])


class Gated(NamedTuple):
    """A code, and the rows that go with it."""

    code: Code
    W_enc: Tensor
    """[F, d]"""
    b_enc: Tensor
    """[F]"""
    W_dec: Tensor
    """[F, ..., d]"""
    notes: tuple[str, ...] = ()


def _gated(
    path: Path, settings: Mapping[str, Any], theta: Tensor | None, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor
) -> Gated:
    """Rows for which the code is `act`, with the norms of the atoms where they count.

    Raises:
        ConfigError: an act_fn for which a token's code depends on other tokens or layers.
    """
    act = settings.get("act_fn", "relu")
    norms = W_dec.flatten(1).norm(dim=1)
    by_norm = settings.get("sparsity_include_decoder_norm", True)
    if act == "relu":
        return Gated(ReLU(), W_enc, b_enc, W_dec)
    if act == "jumprelu":
        assert theta is not None
        return Gated(jump_relu(_by_norm(theta, norms) if by_norm else theta), W_enc, b_enc, W_dec)
    if act != "topk":
        raise ConfigError(f"{path / SETTINGS}: act_fn {act!r} cannot be held: a token's code depends on others")
    if "top_k" not in settings:
        raise CorruptError(f"{path / SETTINGS}: top_k is missing")
    code = TopK(int(settings["top_k"]))
    if not by_norm:
        return Gated(code, W_enc, b_enc, W_dec)
    unit = W_dec / norms.clamp_min(1e-12).view(-1, *[1] * (W_dec.ndim - 1))
    return Gated(code, W_enc * norms.unsqueeze(1), b_enc * norms, unit, (BY_NORM,))


def _theta(weights: Mapping[str, Tensor]) -> Tensor | None:
    return weights[THRESHOLD].exp() if THRESHOLD in weights else None


def _by_norm(theta: Tensor, norms: Tensor) -> Tensor:
    """The threshold of pre where that of pre · norm is θ."""
    return (theta / norms).clamp_max(torch.finfo(torch.float32).max)


def _origin(
    settings: Mapping[str, Any], sites: tuple[str, ...], targets: tuple[str, ...], notes: tuple[str, ...]
) -> Origin:
    match = BEFORE_GAIN.fullmatch(sites[0]) if targets else None
    return Origin(
        "llamascopium",
        architecture=settings["sae_type"],
        sites=(f"mlp_in.{match[1]}",) if match else sites,
        targets=targets,
        normalisation=settings.get("norm_activation", "dataset-wise"),
        before_gain=match is not None,
        notes=notes,
    )
