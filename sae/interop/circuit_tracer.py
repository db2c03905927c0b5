"""circuit-tracer: `layer_N.safetensors`; cross-layer, `W_enc_N.safetensors` beside `W_dec_N.safetensors`.

f = act(W_enc x + b_enc), y = f W_dec + b_dec (+ x W_skip^T), W_enc [F, d], W_dec [F, d_out], W_skip [d_out, d]
(circuit-tracer 0.5, `single_layer_transcoder.py`). With `activation_function.threshold`, act is h 1[h > θ] without a
clamp, so that a negative threshold lets negative values pass; else it is relu. Cross-layer, W_dec_N is [F, L - N, d]:
what is read at layer N is written to N and later layers, and b_dec_N belongs to layer N (`cross_layer_transcoder.py`).

`config.yaml` beside the files names the language model and the hooks, in TransformerLens' words. Sets differ in what
they read: the residual (hook_resid_mid), the norm's output (mlp.hook_in), or that without its gain
(ln2.hook_normalized).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble, cross_layer, jump_relu
from sae.interop.files import settings_in, shapes_in, take, tensors_in
from sae.interop.origin import RESIDUAL, WITH_GAIN
from sae.modules.codes import Code, ReLU

SETTINGS = "config.yaml"
TRAINING = ("wandb-config.yaml", "wanb-config.yaml")
"""Settings of the training; some sets spell the name the second way."""
THRESHOLD, SKIP = "activation_function.threshold", "W_skip"
NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
ENCODER = NAMES - {"W_dec"}
"""Names in the one file of a layer of a cross-layer transcoder."""
INPUTS = {
    "hook_resid_mid": ("resid_mid.{}", (RESIDUAL,)),
    "mlp.hook_in": ("mlp_in.{}", (WITH_GAIN,)),
    "ln2.hook_normalized": ("mlp_in.{}", ()),
}
"""Hook -> site, and what to note of it; of the last, the import does."""
OUTPUTS = {"hook_mlp_out": "mlp_out.{}", "mlp.hook_out": "layers.{}.mlp"}


def recognises(path: Path) -> bool:
    where = _file(path)
    match = re.fullmatch(r"(layer|W_enc)_(\d+)\.safetensors", where.name)
    expected = () if match is None else NAMES if match[1] == "layer" else {f"{name}_{match[2]}" for name in ENCODER}
    return bool(expected) and set(expected) <= set(shapes_in(where))


def read(path: Path) -> Imported:
    where = _file(path)
    if re.fullmatch(r"W_enc_\d+", where.stem):
        return _cross_layer(where)
    tensors = tensors_in(where)
    if "W_dec" not in tensors or tensors["W_dec"].ndim != 2:
        raise CorruptError(f"{where}: W_dec [F, d] is missing; it holds {', '.join(sorted(tensors))}")
    width, dim_out = tensors["W_dec"].shape
    dim = tensors["W_enc"].shape[-1] if "W_enc" in tensors else dim_out
    shapes = {"W_enc": (width, dim), "W_dec": (width, dim_out), "b_enc": (width,), "b_dec": (dim_out,)}
    shapes |= {THRESHOLD: (width,)} if THRESHOLD in tensors else {}
    shapes |= {SKIP: (dim_out, dim)} if SKIP in tensors else {}
    weights = take(tensors, shapes, source=where)
    _check(settings_of_training(where), dim, width, where)
    model = assemble(
        _code(weights.get(THRESHOLD)),
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        W_skip=weights.get(SKIP),
        centred=False,
        transcodes=True,
        source=str(where),
    )
    layer = re.fullmatch(r"layer_(\d+)", where.stem)
    return Imported(model, _origin(where, "transcoder", None if layer is None else int(layer[1]), 1))


def read_layer(path: Path, layer: int) -> Imported:
    files = [path / f"layer_{layer}.safetensors", path / f"W_enc_{layer}.safetensors"]
    for file in files:
        if file.is_file():
            return read(file)
    raise ConfigError(f"{path}:{layer}: no {' or '.join(file.name for file in files)}")


def _cross_layer(where: Path) -> Imported:
    layer = int(where.stem.rpartition("_")[2])
    decoder = where.with_name(f"W_dec_{layer}.safetensors")
    if not decoder.is_file():
        raise CorruptError(f"{where}: {decoder.name} is missing beside it")
    tensors = {**tensors_in(where), **tensors_in(decoder)}
    if tensors.get(f"W_dec_{layer}") is None or tensors[f"W_dec_{layer}"].ndim != 3:
        raise CorruptError(f"{decoder}: W_dec_{layer} [F, layers, d] is missing; it holds {', '.join(sorted(tensors))}")
    width, layers, dim_out = tensors[f"W_dec_{layer}"].shape
    shapes = {"W_enc": (width, dim_out), "b_enc": (width,), "b_dec": (dim_out,), "W_dec": (width, layers, dim_out)}
    threshold = f"threshold_{layer}"
    if threshold in tensors:
        tensors[threshold] = tensors[threshold].flatten()
        shapes["threshold"] = (width,)
    weights = take(tensors, {f"{name}_{layer}": shape for name, shape in shapes.items()}, source=where)
    return cross_layer(
        _code(weights.get(threshold)),
        _origin(where, "cross-layer transcoder", layer, layers),
        W_enc=weights[f"W_enc_{layer}"],
        b_enc=weights[f"b_enc_{layer}"],
        W_dec=weights[f"W_dec_{layer}"],
        b_dec=weights[f"b_dec_{layer}"],
        source=str(where),
    )


def _code(threshold: Tensor | None) -> Code:
    return ReLU() if threshold is None else jump_relu(threshold)


def _origin(where: Path, architecture: str, layer: int | None, layers: int) -> Origin:
    """What config.yaml says of a transcoder that writes to `layers` layers."""
    settings = settings_in(where.parent / SETTINGS)
    hook_in, hook_out = settings.get("feature_input_hook"), settings.get("feature_output_hook")
    for name, hook, known in (("input", hook_in, INPUTS), ("output", hook_out, OUTPUTS)):
        if hook is not None and hook not in known:
            raise ConfigError(
                f"{where.parent / SETTINGS}: feature_{name}_hook {hook!r} is unknown; known: {', '.join(known)}"
            )
    sites, targets, notes = (), (), ()
    if hook_in is not None and layer is not None:
        site, notes = INPUTS[hook_in]
        sites = (site.format(layer),)
    if hook_out is not None and layer is not None:
        targets = tuple(OUTPUTS[hook_out].format(number) for number in range(layer, layer + layers))
    return Origin(
        "circuit-tracer",
        architecture=architecture,
        model=settings.get("model_name"),
        sites=sites,
        targets=targets,
        before_gain=hook_in == "ln2.hook_normalized",
        notes=notes,
    )


def settings_of_training(where: Path) -> dict[str, Any]:
    """Name -> value of the settings of the training; empty where there are none."""
    for name in TRAINING:
        if settings := settings_in(where.parent / name):
            return {key: entry.get("value") for key, entry in settings.items() if isinstance(entry, dict)}
    return {}


def _check(training: dict[str, Any], dim: int, width: int, where: Path) -> None:
    """Refuse weights of another size than the settings of the training say.

    Raises:
        CorruptError: names the setting.
    """
    for name, value in {"d_model": dim, "d_feature": width}.items():
        if training.get(name, value) != value:
            raise CorruptError(f"{where}: {name} is {training[name]} in the settings of the training, here {value}")


def _file(path: Path) -> Path:
    """The file of weights; of a folder the first by name."""
    files = sorted([*path.glob("layer_*.safetensors"), *path.glob("W_enc_*.safetensors")]) if path.is_dir() else []
    return files[0] if files else path
