"""SAELens (decoderesearch): a folder with `cfg.json` and `sae_weights.safetensors`.

Row vectors: pre = (x - b_dec) W_enc + b_enc, x̂ = f W_dec + b_dec, W_enc [d, F], W_dec [F, d] (sae_lens 6.54,
`saes/*.py`). A transcoder, and an SAE with `apply_b_dec_to_input` false, reads x itself. What normalised the inputs is
folded into the weights, as SAELens does at the end of its training. Training checkpoints are read as the autoencoder
that `save_inference_model` would write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import BEFORE_GAIN, TWO_SIDED, Imported, Origin, assemble, gated, jump_relu, two_sided
from sae.interop.files import settings_in, shapes_in, take, tensors_in, text_of
from sae.modules.codes import Code, ReLU, TopK

WEIGHTS, SETTINGS = "sae_weights.safetensors", "cfg.json"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"


class Architecture(NamedTuple):
    """Which tensors an architecture has beside W_enc, W_dec and b_dec."""

    latents: tuple[str, ...]
    """Names of tensors [F]."""
    transcodes: bool = False
    skip: bool = False


ARCHITECTURES = {
    "standard": Architecture(("b_enc",)),
    "topk": Architecture(("b_enc",)),
    "abstopk": Architecture(("b_enc",)),
    "jumprelu": Architecture(("b_enc", "threshold")),
    "batchtopk": Architecture(("b_enc",)),
    "matryoshka_batchtopk": Architecture(("b_enc",)),
    "gated": Architecture(("b_gate", "b_mag", "r_mag")),
    "transcoder": Architecture(("b_enc",), transcodes=True),
    "skip_transcoder": Architecture(("b_enc",), transcodes=True, skip=True),
    "jumprelu_transcoder": Architecture(("b_enc", "threshold"), transcodes=True),
    "jumprelu_skip_transcoder": Architecture(("b_enc", "threshold"), transcodes=True, skip=True),
}
REFUSED = {
    "temporal": "its codes depend on earlier tokens, through attention",
    "matching_pursuit": "it selects an atom more than once and stops at a residual norm; ours takes k atoms, each once",
}
SELECTS = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
"""Architectures that keep the largest pre-activations."""
IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""Only checkpoints of a training are of these: SAELens saves a JumpReLU at the end."""
KNOWN_HOOKS = re.compile(
    r"blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_attn_out|hook_mlp_(in|out)|mlp\.hook_in|attn\.hook_z)"
)
ORGANISATIONS = {"pythia-": "EleutherAI/", "gpt-neo-": "EleutherAI/", "gemma-": "google/", "Qwen": "Qwen/"}
"""How the name of a model in TransformerLens begins -> what comes before it on the hub."""


def recognises(path: Path) -> bool:
    folder = _folder(path)
    try:
        settings = settings_in(folder / SETTINGS)
    except CorruptError:
        return False
    if not settings or not (folder / WEIGHTS).is_file():
        return False
    return settings.get("architecture") in REFUSED or {"W_dec", "b_dec"} <= set(shapes_in(folder / WEIGHTS))


def read(path: Path) -> Imported:
    folder = _folder(path)
    settings = _settings(settings_in(folder / SETTINGS))
    architecture = settings["architecture"]
    where = f"{folder / SETTINGS}: architecture {architecture!r}"
    if architecture in REFUSED:
        raise ConfigError(f"{where} cannot be held: {REFUSED[architecture]}")
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"{where} is unknown; known: {', '.join(ARCHITECTURES)}")
    if architecture == "standard" and (activation := settings.get("activation_fn", "relu")) != "relu":
        raise ConfigError(f"{folder / SETTINGS}: activation_fn {activation!r} cannot be held; expected relu or topk")
    kind = ARCHITECTURES[architecture]
    weights = _weights(folder, settings, kind)
    notes = _normalised(folder, settings, weights, kind)
    if architecture == "abstopk":
        notes.append(TWO_SIDED)
    model = assemble(
        _code(folder, settings, weights),
        W_enc=weights["W_enc"].T,
        b_enc=weights["b_gate" if architecture == "gated" else "b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        W_skip=weights.get("W_skip"),
        centred=not kind.transcodes and bool(settings.get("apply_b_dec_to_input", True)),
        transcodes=kind.transcodes,
        per_token_norm=settings["normalize_activations"] == "layer_norm",
        source=str(folder),
    )
    return Imported(model, _origin(settings, kind, notes))


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of any version, flat: those before 6 had no `metadata`, and other names."""
    old = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    flat = {old.get(name, name): value for name, value in given.items() if name != "metadata"}
    settings = {**flat, **(given.get("metadata") or {})}
    if "hook_name" in flat:  # before 6, when BOS was there unless the settings said otherwise
        settings.setdefault("prepend_bos", True)
    if settings.get("activation_fn") == "topk" and (k := (settings.get("activation_fn_kwargs") or {}).get("k")):
        settings |= {"architecture": "topk", "k": k}
    normalised = settings.get("normalize_activations") or "none"
    settings["normalize_activations"] = "expected_average_only_in" if normalised is True else normalised
    settings.setdefault("architecture", "standard")
    return settings


def _weights(folder: Path, settings: dict[str, Any], kind: Architecture) -> dict[str, Tensor]:
    """The tensors of the architecture, each of the shape that the settings say, W_dec in the length that it decodes.

    Raises:
        CorruptError: names a tensor and its shapes.
    """
    tensors = tensors_in(folder / WEIGHTS)
    if "log_threshold" in tensors:  # in checkpoints of older trainings
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "W_dec" not in tensors or tensors["W_dec"].ndim != 2:
        raise CorruptError(f"{folder / WEIGHTS}: W_dec [F, d] is missing; it holds {', '.join(sorted(tensors))}")
    dim = int(settings.get("d_in", tensors["W_dec"].shape[1]))
    width = int(settings.get("d_sae", tensors["W_dec"].shape[0]))
    out = int(settings.get("d_out", tensors["W_dec"].shape[1])) if kind.transcodes else dim
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (dim, width), "W_dec": (width, out), "b_dec": (out,)}
    shapes |= dict.fromkeys(kind.latents, (width,))
    if kind.skip:
        shapes["W_skip"] = (out, dim)
    if settings["architecture"] in IN_TRAINING:
        shapes["topk_threshold"] = ()
    factor = tensors.pop("scaling_factor", None)  # of SAELens 3 to 5: it scales what the latents add
    source = folder / f"{WEIGHTS} (architecture {settings['architecture']})"
    weights = take(tensors, shapes, source=source)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        if not settings.get("finetuning_scaling_factor"):
            raise CorruptError(f"{folder / WEIGHTS}: has a scaling_factor, and {SETTINGS} says that there is none")
        weights["W_dec"] = weights["W_dec"] * take(
            {"scaling_factor": factor}, {"scaling_factor": (width,)}, source=source
        )["scaling_factor"].unsqueeze(1)
    return weights


def _normalised(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor], kind: Architecture) -> list[str]:
    """Build what normalised the inputs, and the atoms' norms where they count, into the weights; returns notes.

    Raises:
        ConfigError: a normalisation that the autoencoder cannot hold, by its name.
    """
    name, notes = settings["normalize_activations"], []
    where = f"{folder / SETTINGS}: normalize_activations {name!r}"
    by_norm = bool(settings.get("rescale_acts_by_decoder_norm")) and settings["architecture"] in SELECTS
    if name == "layer_norm" and kind.transcodes:
        raise ConfigError(f"{where}: cannot be held in a transcoder, whose output it does not undo")
    if name == "expected_average_only_in":
        if (factor := settings_in(folder / SCALER).get("scaling_factor")) is not None:
            _scale(weights, float(factor), by_norm)
        else:
            notes.append(
                f"trained on scaled inputs ({name}), and the files do not have the factor: it reads raw inputs"
            )
    elif name == "covariance_whitening":
        if by_norm:
            _unit(weights)
            by_norm = False
        if (folder / WHITENING).is_file():
            _whiten(weights, folder / WHITENING, bool(settings.get("apply_b_dec_to_input", True)))
        else:
            notes.append(f"trained on whitened inputs, and {WHITENING} is not there: it reads raw inputs")
    elif name not in ("none", "layer_norm"):
        raise ConfigError(f"{where} cannot be held: it depends on each token's norm or on a factor that is not there")
    if by_norm:
        _unit(weights)
    return notes


def _scale(weights: dict[str, Tensor], factor: float, by_norm: bool) -> None:
    """The autoencoder that reads x as the trained one read `factor` x."""
    weights["W_enc"] = weights["W_enc"] * factor
    weights["W_dec"], weights["b_dec"] = weights["W_dec"] / factor, weights["b_dec"] / factor
    if by_norm and "topk_threshold" in weights:  # it is compared with pre · ||w||
        weights["topk_threshold"] = weights["topk_threshold"] / factor


def _whiten(weights: dict[str, Tensor], path: Path, centred: bool) -> None:
    """The autoencoder that reads x as the trained one read (x - mean) M."""
    tensors = tensors_in(path)
    dim = weights["W_enc"].shape[0]
    shapes = {"mean": (dim,), "matrix": (dim, dim), "inverse_matrix": (dim, dim)}
    mean, matrix, inverse = take(tensors, shapes, source=path).values()
    weights["W_enc"] = matrix @ weights["W_enc"]
    weights["W_dec"] = weights["W_dec"] @ inverse
    weights["b_dec"] = weights["b_dec"] @ inverse + mean
    if not centred:
        shift = mean @ weights["W_enc"]
        for name in ("b_enc", "b_gate", "b_mag"):
            if name in weights:
                weights[name] = weights[name] - (shift * weights["r_mag"].exp() if name == "b_mag" else shift)


def _unit(weights: dict[str, Tensor]) -> None:
    """Unit atoms: what is selected, and what SAELens calls a latent's value, is pre · ||w||."""
    norms = weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms.unsqueeze(1)


def _code(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor]) -> Code:
    """The code; a code of signed latents makes two of each latent in `weights`."""
    architecture = settings["architecture"]
    if architecture == "gated":
        return gated(weights["r_mag"], weights["b_gate"], weights["b_mag"])
    if "threshold" in weights:
        # relu comes first: a threshold below 0 leaves what relu leaves
        return jump_relu(weights["threshold"].clamp_min(0))
    if architecture in IN_TRAINING:
        return jump_relu(weights["topk_threshold"].clamp_min(0).expand_as(weights["b_enc"]))
    if architecture not in SELECTS:
        return ReLU()
    if (k := settings.get("k")) is None:
        raise CorruptError(f"{folder / SETTINGS}: k is missing")
    if architecture == "abstopk":
        both = two_sided(weights["W_enc"].T, weights["b_enc"], weights["W_dec"])
        weights |= {"W_enc": both.W_enc.T, "b_enc": both.b_enc, "W_dec": both.W_dec}
    return TopK(int(k))


def _origin(settings: dict[str, Any], kind: Architecture, notes: list[str]) -> Origin:
    head = settings.get("hook_head_index")
    if head is not None:
        notes.append(f"it reads head {head} alone of {settings.get('hook_name')}, which is no site")
    site, target = (None, None) if head is not None else (_site(settings, ""), _site(settings, "_out"))
    if (layer := _before_gain(settings, kind)) is not None:
        site = f"mlp_in.{layer}"
    left_out = []
    if special := settings.get("exclude_special_tokens"):
        left_out.append("special tokens" if special is True else f"tokens {special}")
    if (positions := settings.get("seqpos_slice")) and any(part is not None for part in positions):
        left_out.append(f"positions outside the slice {positions}")
    return Origin(
        "SAELens",
        architecture=settings["architecture"],
        model=_hub_id(settings.get("model_name")),
        sites=() if site is None else (site,),
        targets=(target,) if kind.transcodes and target is not None else (),
        bos=settings.get("prepend_bos"),
        context=settings.get("context_size"),
        dataset=text_of(settings.get("dataset_path")),
        normalisation=settings["normalize_activations"],
        left_out=", ".join(left_out) or None,
        before_gain=_before_gain(settings, kind) is not None,
        notes=tuple(notes),
    )


def _before_gain(settings: dict[str, Any], kind: Architecture) -> str | None:
    """The layer of a transcoder that reads what the norm before the MLP makes without its gain."""
    match = BEFORE_GAIN.fullmatch(settings.get("hook_name") or "") if kind.transcodes else None
    return match[1] if match else None


def _site(settings: dict[str, Any], end: str) -> str | None:
    """The site in a spelling that we read: TransformerLens' hook where we know it, else the transformers module."""
    hook, module = settings.get(f"hook_name{end}"), settings.get(f"hf_hook_name{end}")
    if module is None or (hook is not None and KNOWN_HOOKS.fullmatch(hook)):
        return hook
    return re.sub(r"\.input$", ":in", module).removesuffix(".output")


def _hub_id(name: str | None) -> str | None:
    """The hub id of a name of TransformerLens."""
    if name is None or "/" in name:
        return name
    if name == "gpt2-small":
        return "gpt2"
    return next((organisation + name for start, organisation in ORGANISATIONS.items() if name.startswith(start)), name)
