"""Llama Scope: `hyperparams.json` with `checkpoints/final.safetensors`; for R1, `config.json` with `sae_weights...`.

With s = √d / (average norm of the data set), inputs are multiplied by s_in, reconstructions divided by s_out:
pre = W (s_in x) + b, x̂ = (Σ_j f_j w_j + b_dec) / s_out (He et al. 2024; lm_saes, `sae.py`). At inference the authors
fold this into the weights, and then bring atoms to unit norm, so that a value is the length of its contribution in the
units of the activations (`initializer.py`). This is the form in which they are read here:

    pre_j = n_j (W_j x + b_j / s_in),   n_j = ||w_j|| s_in / s_out,   f_j = pre_j 1[pre_j > θ_j]

- Llama Scope has one scalar θ, chosen on this form after training with top k. So it is in units of the activations and
  not of the normalised ones, and grows with them: .202, .355 and .754 at average norms 6.3, 10.8 and 29.1 (layers 8, 15
  and 24), .104 for a transcoder to outputs of norm 3.4. SAELens compares s_in θ with normalised pre-activations: the
  same where s_in = s_out and atoms have unit norm, so not for transcoders.
- R1's thresholds a latent are trained on normalised activations: θ_j = exp(log_jumprelu_threshold_j) / s_out.

Transcoders read the output of the norm before the MLP without its gain (average norm 64.0 = √d).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import BEFORE_GAIN, Imported, Origin, assemble, jump_relu
from sae.interop.files import settings_in, shapes_in, take, tensors_in

FILES = {"hyperparams.json": "checkpoints/final.safetensors", "config.json": "sae_weights.safetensors"}
"""Settings -> weights."""
NAMES = {"encoder.weight", "encoder.bias", "decoder.weight"}
LOG_THRESHOLD = "log_jumprelu_threshold"
NORM = "dataset_average_activation_norm"


def recognises(path: Path) -> bool:
    return any(
        (path / settings).is_file() and set(shapes_in(path / weights)) >= NAMES for settings, weights in FILES.items()
    )


def read(path: Path) -> Imported:
    settings_name = next((name for name, weights in FILES.items() if (path / weights).is_file()), None)
    if settings_name is None:
        raise CorruptError(f"{path}: expected a folder with {' or '.join(FILES.values())}")
    settings, where = settings_in(path / settings_name), path / FILES[settings_name]
    _check(settings, path / settings_name)
    tensors = tensors_in(where)
    norms = {name.removeprefix(f"{NORM}."): tensor for name, tensor in tensors.items() if name.startswith(NORM)}
    if "decoder.weight" not in tensors or tensors["decoder.weight"].ndim != 2:
        raise CorruptError(f"{where}: decoder.weight [d, F] is missing; it holds {', '.join(sorted(tensors))}")
    dim, width = tensors["decoder.weight"].shape
    shapes = {"encoder.weight": (width, dim), "encoder.bias": (width,), "decoder.weight": (dim, width)}
    biased = settings.get("use_decoder_bias", True)
    learnt = "jump_relu_threshold" not in settings
    shapes |= {"decoder.bias": (dim,)} if biased else {}
    shapes |= {LOG_THRESHOLD: (width,)} if learnt else {}
    weights = take(tensors, shapes, source=where, ignore=[name for name in tensors if name.startswith(NORM)])
    s_in, s_out = _scales(settings, norms, dim, path / settings_name)
    W_enc, W_dec = weights["encoder.weight"], weights["decoder.weight"].T * (s_in / s_out)
    b_dec = weights["decoder.bias"] if biased else torch.zeros(dim)
    b_enc = weights["encoder.bias"]
    if settings.get("apply_decoder_bias_to_pre_encoder", False):
        b_enc = b_enc - W_enc @ b_dec
    b_enc, unit = b_enc / s_in, settings.get("sparsity_include_decoder_norm", True)
    if learnt:
        theta = weights[LOG_THRESHOLD].exp() / (s_out if unit else s_in)
    else:
        theta = torch.full((width,), max(0.0, float(settings["jump_relu_threshold"])))
    if unit:
        lengths = W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        W_enc, b_enc, W_dec = W_enc * lengths[:, None], b_enc * lengths, W_dec / lengths[:, None]
    transcodes = settings.get("hook_point_out", settings["hook_point_in"]) != settings["hook_point_in"]
    model = assemble(
        jump_relu(theta),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec / s_out,
        centred=False,
        transcodes=transcodes,
        source=str(where),
    )
    note = "values are in units of the activations, as at the authors' inference; SAELens' are in normalised units"
    origin = Origin(
        "Llama Scope",
        architecture="jumprelu transcoder" if transcodes else "jumprelu",
        sites=_site(settings["hook_point_in"]),
        targets=_site(settings["hook_point_out"]) if transcodes else (),
        normalisation=settings.get("norm_activation", "dataset-wise"),
        before_gain=BEFORE_GAIN.fullmatch(settings["hook_point_in"]) is not None,
        notes=(note,),
    )
    return Imported(model, origin)


def _check(settings: dict[str, Any], where: Path) -> None:
    """Refuse settings that this reader does not know.

    Raises:
        ConfigError, CorruptError: names the setting.
    """
    if "hook_point_in" not in settings:
        raise CorruptError(f"{where}: hook_point_in is missing")
    for name, expected in {"act_fn": ("jumprelu",), "norm_activation": ("dataset-wise", "inference")}.items():
        if (value := settings.get(name, expected[0])) not in expected:
            raise ConfigError(f"{where}: {name} {value!r} cannot be held; expected {' or '.join(expected)}")
    if settings.get("use_glu_encoder"):
        raise ConfigError(f"{where}: use_glu_encoder cannot be held; expected false")


def _scales(settings: dict[str, Any], norms: dict[str, Tensor], dim: int, where: Path) -> tuple[float, float]:
    """s_in and s_out: √d over the average norms, which are in the settings or beside the weights.

    Raises:
        CorruptError: a norm is missing or not positive.
    """
    if settings.get("norm_activation") == "inference":
        return 1.0, 1.0
    known = {**settings.get(NORM, {}), **{name: float(tensor) for name, tensor in norms.items()}}
    scales = []
    for end in ("in", "out"):
        hook = settings.get(f"hook_point_{end}", settings["hook_point_in"])
        norm = known.get(end, known.get(hook))
        if norm is None or not norm > 0:
            raise CorruptError(f"{where}: {NORM} of {hook} is {norm}, expected a positive number")
        scales.append(dim**0.5 / norm)
    return scales[0], scales[1]


def _site(hook: str) -> tuple[str, ...]:
    """A TransformerLens hook as a site; that of the norm before the MLP is the MLP's input, but for the gain."""
    match = BEFORE_GAIN.fullmatch(hook)
    return (f"mlp_in.{match[1]}",) if match else (hook,)
