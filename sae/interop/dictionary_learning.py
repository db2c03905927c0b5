"""dictionary_learning (saprmarks): a folder `trainer_i` with `ae.pt` and `config.json` (version 0.1, `dictionary.py`).

    AutoEncoder               relu(W (x - b) + b_enc); loaded with unit atoms, what the latents add left as it is
    AutoEncoderNew            relu(W x + b_enc)
    GatedAutoEncoder          1[W (x - b) + b_gate > 0] relu(e^r W (x - b) + b_mag)
    AutoEncoderTopK           topk(relu(W (x - b) + b_enc))
    BatchTopKSAE, Matryoshka  relu(pre) 1[relu(pre) > threshold], pre = W (x - b) + b_enc
    JumpReluAutoEncoder       relu(pre 1[pre > threshold]), pre = W x + b_enc

The file holds a state dict, or wraps one with the state of its training {step, ae, optimizer, config, norm_factor}: the
biases of that one belong to inputs divided by norm_factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble, gated, jump_relu
from sae.interop.files import TORCH, settings_in, shapes_in, take, tensors_in, values_in
from sae.modules.codes import Code, ReLU, TopK

WEIGHTS, SETTINGS = "ae.pt", "config.json"


class Form(NamedTuple):
    """How a class of dictionary_learning names its tensors, and what it computes."""

    encoder: str
    decoder: str
    b_enc: str
    b_dec: str
    code: Callable[[Mapping[str, Tensor]], Code]
    centred: bool = True
    unit: bool = False
    """Whether it is loaded with unit atoms."""
    more: Mapping[str, str] = {}
    """Further tensors -> "F" for one number a latent, "" for one number, "groups" for any number of them."""
    unused: tuple[str, ...] = ()
    """Tensors that its encode does not read."""


def _thresholded(tensors: Mapping[str, Tensor]) -> Code:
    # relu comes first: an unset threshold (-1) leaves what relu leaves
    width = len(tensors["b_enc"] if "b_enc" in tensors else tensors["encoder.bias"])
    return jump_relu(tensors["threshold"].clamp_min(0).expand(width))


LINEAR = Form("encoder.weight", "decoder.weight", "encoder.bias", "b_dec", lambda tensors: ReLU())
MATRICES = Form("W_enc", "W_dec", "b_enc", "b_dec", _thresholded)
FORMS = {
    "AutoEncoder": LINEAR._replace(b_dec="bias", unit=True),
    "AutoEncoderNew": LINEAR._replace(b_dec="decoder.bias", centred=False),
    "GatedAutoEncoder": LINEAR._replace(
        b_enc="gate_bias",
        b_dec="decoder_bias",
        code=lambda tensors: gated(tensors["r_mag"], tensors["gate_bias"], tensors["mag_bias"]),
        more={"r_mag": "F", "mag_bias": "F"},
    ),
    "AutoEncoderTopK": LINEAR._replace(
        code=lambda tensors: TopK(int(tensors["k"])), more={"k": ""}, unused=("threshold",)
    ),
    "BatchTopKSAE": LINEAR._replace(code=_thresholded, more={"k": "", "threshold": ""}),
    "MatryoshkaBatchTopKSAE": MATRICES._replace(more={"k": "", "threshold": "", "group_sizes": "groups"}),
    "JumpReluAutoEncoder": MATRICES._replace(centred=False, more={"threshold": "F"}),
}
"""dict_class -> its form."""
SCALED = ("bias", "encoder.bias", "decoder.bias", "gate_bias", "mag_bias", "decoder_bias", "b_dec", "b_enc")
"""What its `scale_biases` multiplies, beside a threshold that is set."""
PLACES = {"resid_post": "resid_post", "resid_pre": "resid_pre", "mlp_out": "mlp_out", "attention_out": "attn_out"}
PLACES["attn_out"] = "attn_out"


def recognises(path: Path) -> bool:
    file = _file(path)
    names = {name.removeprefix("ae.") for name in shapes_in(file)} if file.suffix in TORCH else set()
    return any(_names(form) <= names for form in FORMS.values())


def read(path: Path) -> Imported:
    file = _file(path)
    tensors, values = tensors_in(file), values_in(file)
    settings = _settings(file, values)
    trainer = settings.get("trainer", settings)
    notes: list[str] = []
    if any(name.startswith("ae.") for name in tensors):
        factor = float(values["norm_factor"] if "norm_factor" in values else tensors.get("norm_factor", 1.0) or 1.0)
        tensors = {name.removeprefix("ae."): t for name, t in tensors.items() if name.startswith("ae.")}
        notes.append(f"a backup taken during its training, at step {values.get('step', 'unknown')}")
        _scale_biases(tensors, factor)
    name = _class(file, tensors, trainer)
    form = FORMS[name]
    weights = _weights(file, name, tensors, trainer)
    if "threshold" in weights and bool((weights["threshold"] < 0).all()):
        notes.append("its threshold was never set: every positive latent is active")
    W_enc, W_dec = (weights[part] for part in (form.encoder, form.decoder))
    W_enc, W_dec = (W_enc, W_dec.T) if form.decoder == "decoder.weight" else (W_enc.T, W_dec)
    b_enc = weights[form.b_enc]
    if form.unit:
        norms = W_dec.norm(dim=1)
        if bool((norms > 0).all()):
            W_enc, b_enc, W_dec = W_enc * norms.unsqueeze(1), b_enc * norms, W_dec / norms.unsqueeze(1)
    model = assemble(
        form.code(weights),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=weights[form.b_dec],
        centred=form.centred,
        source=str(file),
    )
    return Imported(model, _origin(file, name, settings, notes))


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _settings(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """config.json beside the file, or above `checkpoints/`; else what a backup holds."""
    for folder in (file.parent, file.parent.parent):
        if "trainer" in (settings := settings_in(folder / SETTINGS)):
            return settings
    return dict(values.get("config") or {})


def _names(form: Form) -> set[str]:
    return {form.encoder, form.decoder, form.b_enc, form.b_dec, *form.more}


def _class(file: Path, tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> str:
    """The class that the settings name, or the only one with these tensors.

    Raises:
        ConfigError: a class that is not known, or none is named and two have the same tensors.
        CorruptError: the class has other tensors.
    """
    present = set(tensors)
    matches = [name for name, form in FORMS.items() if _names(form) <= present <= _names(form) | {*form.unused}]
    name = trainer.get("dict_class")
    if name is None:
        if len(matches) == 1:
            return matches[0]
        among = " or ".join(matches) or "no known class"
        raise ConfigError(f"{file}: its tensors are those of {among}; expected {SETTINGS} with trainer.dict_class")
    if name not in FORMS:
        raise ConfigError(f"{file}: dict_class {name!r} is unknown; known: {', '.join(FORMS)}")
    return name


def _weights(file: Path, name: str, tensors: dict[str, Tensor], trainer: Mapping[str, Any]) -> dict[str, Tensor]:
    form = FORMS[name]
    source = file.with_name(f"{file.name} (dict_class {name})")
    biases = [part for part in (form.b_enc, form.b_dec) if part not in tensors]
    if biases:
        raise CorruptError(f"{source}: {', '.join(biases)} is missing; it holds {', '.join(sorted(tensors))}")
    width = int(trainer.get("dict_size") or len(tensors[form.b_enc]))
    dim = int(trainer.get("activation_dim") or len(tensors[form.b_dec]))
    linear = form.decoder == "decoder.weight"
    shapes: dict[str, tuple[int, ...]] = {
        form.encoder: (width, dim) if linear else (dim, width),
        form.decoder: (dim, width) if linear else (width, dim),
        form.b_enc: (width,),
        form.b_dec: (dim,),
    }
    for part, length in form.more.items():
        given = tuple(tensors[part].shape) if part in tensors else ()
        shapes[part] = (width,) if length == "F" else given if length == "groups" else ()
    weights = take(tensors, shapes, source=source, ignore=form.unused)
    if "k" in weights and trainer.get("k", int(weights["k"])) != int(weights["k"]):
        raise CorruptError(f"{source}: k is {int(weights['k'])}, {SETTINGS} has {trainer['k']}")
    return weights


def _scale_biases(tensors: dict[str, Tensor], factor: float) -> None:
    """The autoencoder of x, from that of x / factor."""
    for name in SCALED:
        if name in tensors:
            tensors[name] = tensors[name] * factor
    if "threshold" in tensors:
        unset = tensors["threshold"] < 0
        tensors["threshold"] = tensors["threshold"].where(unset, tensors["threshold"] * factor)


def _origin(file: Path, name: str, settings: Mapping[str, Any], notes: list[str]) -> Origin:
    trainer, buffer = settings.get("trainer", settings), settings.get("buffer") or {}
    left_out = []
    if buffer.get("remove_bos"):
        left_out.append("the first token of each context")
    if tokens := buffer.get("tokens_to_remove"):
        left_out.append(f"tokens {tokens}")
    if multiple := buffer.get("max_activation_norm_multiple"):
        left_out.append(f"norms over {multiple} x the median")
    site = _site(file, trainer)
    return Origin(
        "dictionary_learning",
        architecture=name,
        model=trainer.get("lm_name"),
        sites=() if site is None else (f"{site}:in" if buffer.get("io") == "in" and "." in site else site,),
        context=buffer.get("ctx_len"),
        normalisation="norm_factor" if trainer.get("norm_factor") else None,
        left_out=", ".join(left_out) or None,
        notes=tuple(notes),
    )


def _site(file: Path, trainer: Mapping[str, Any]) -> str | None:
    """From submodule_name (`resid_post_layer_8`, `resid_post` with a layer, a module path), else the folders' names."""
    given = trainer.get("submodule_name")
    for text in (given or "", *reversed(file.absolute().parts)):
        if match := re.search(rf"({'|'.join(PLACES)})_layer_(\d+)", text):
            return f"{PLACES[match[1]]}.{match[2]}"
    if given in PLACES and trainer.get("layer") is not None:
        return f"{PLACES[given]}.{trainer['layer']}"
    return given if given and re.search(r"\.\d+(\.|$)", given) else None
