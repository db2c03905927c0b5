"""Small files of the same names and shapes as published ones.

layouts.write(named("gemma-scope-2b-pt-res/layer_12/width_16k/canonical"), folder)   # folder/layer_12/...
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from sae.interop.registry import Published

D, F = 32, 48
Tensors = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def row_vectors(d: int = D, width: int = F) -> Tensors:
    """W_enc [d, F], W_dec [F, d], biases and thresholds, of which a few latents reach."""
    return {
        "W_enc": draw(d, width, seed=1) / d**0.5,
        "b_enc": draw(width, seed=2) / 4,
        "W_dec": draw(width, d, seed=3),
        "b_dec": draw(d, seed=4),
        "threshold": draw(width, seed=5).abs() / 2,
    }


def linear(encoder: str = "encoder", decoder: str = "decoder", d: int = D, width: int = F) -> Tensors:
    """The same as two linear layers: weights [F, d] and [d, F]."""
    weights = row_vectors(d, width)
    return {
        f"{encoder}.weight": weights["W_enc"].T,
        f"{encoder}.bias": weights["b_enc"],
        f"{decoder}.weight": weights["W_dec"].T,
        f"{decoder}.bias": weights["b_dec"],
    }


def save(tensors: Tensors, path: Path) -> None:
    """As the ending says: .safetensors, .npz, or a torch file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, **arrays)
    else:
        torch.save(tensors, path)


def gemma_scope(place: Path, of: Published) -> None:
    del of
    save(row_vectors(), place / "params.npz")


def gemma_scope_2(place: Path, of: Published) -> None:
    weights = {name.lower(): tensor for name, tensor in row_vectors().items()}
    if "affine" in of.variant:
        weights["affine_skip_connection"] = draw(D, D, seed=6)
    kind = of.path.partition("/")[0]
    layer = f"model.layers.{of.layer}"
    transcodes = kind in ("clt", "transcoder", "transcoder_all")
    if kind == "clt":
        weights["w_dec"] = draw(F, 26, D, seed=3)
    places = {
        "resid_post": "output",
        "attn_out": "self_attn.o_proj.input",
        "mlp_out": "post_feedforward_layernorm.output",
        "transcoder": "pre_feedforward_layernorm.output",
    }
    settings = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "affine_connection": "affine" in of.variant,
        "hf_hook_point_in": f"{layer}.{places[kind.removesuffix('_all')]}" if kind != "clt" else None,
        "hf_hook_point_out": f"{layer}.post_feedforward_layernorm.output" if transcodes else None,
    }
    folder = place.parent if kind == "clt" else place
    save(weights, place if kind == "clt" else folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))


def llama_scope(place: Path, of: Published) -> None:
    weights, kind = linear(), of.repository.partition("LX")[2].partition("-")[0]
    hooks = {"R": "hook_resid_post", "A": "hook_attn_out", "M": "hook_mlp_out", "TC": "ln2.hook_normalized", "": ""}
    hook_in = f"blocks.{of.layer}.{hooks[kind] or 'hook_resid_post'}"
    settings = {
        "act_fn": "jumprelu",
        "d_model": D,
        "hook_point_in": hook_in,
        "hook_point_out": f"blocks.{of.layer}.hook_mlp_out" if kind == "TC" else hook_in,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    if kind:
        norms = {"in": D**0.5 if kind == "TC" else 3.5, "out": 2.25 if kind == "TC" else 3.5}
        settings |= {"d_sae": F, "jump_relu_threshold": 0.2, "dataset_average_activation_norm": norms}
        save(weights, place / "checkpoints" / "final.safetensors")
        (place / "hyperparams.json").write_text(json.dumps(settings))
    else:
        weights["log_jumprelu_threshold"] = draw(F, seed=7) / 4
        weights[f"dataset_average_activation_norm.{hook_in}"] = torch.tensor(3.5)
        save(weights, place / "sae_weights.safetensors")
        (place / "config.json").write_text(json.dumps(settings))


def circuit_tracer(place: Path, of: Published) -> None:
    weights = row_vectors()
    weights["W_enc"] = weights["W_enc"].T
    threshold = weights.pop("threshold")
    settings = {"model_name": of.of.model, "model_kind": "transcoder_set", "feature_output_hook": "hook_mlp_out"}
    settings["feature_input_hook"] = "mlp.hook_in" if "qwen3" in of.repository else "hook_resid_mid"
    if of.also:
        layers = 3
        encoder = {f"{name}_{of.layer}": weights[name] for name in ("W_enc", "b_enc", "b_dec")}
        save({**encoder, f"threshold_{of.layer}": threshold}, place)
        save({f"W_dec_{of.layer}": draw(F, layers, D, seed=3)}, place.with_name(f"W_dec_{of.layer}.safetensors"))
        settings["model_kind"] = "cross_layer_transcoder"
    else:
        save(weights, place)
    (place.parent / "config.yaml").write_text(yaml.safe_dump(settings))
    if "qwen3" in of.repository:
        training = {"d_model": {"value": D}, "d_feature": {"value": F}}
        (place.parent / "wanb-config.yaml").write_text(yaml.safe_dump(training))


def qwen_scope(place: Path, of: Published) -> None:
    del of
    weights = row_vectors(width=128)
    names = {"W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T}
    save({**names, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, place)


def goodfire(place: Path, of: Published) -> None:
    del of
    save(linear("encoder_linear", "decoder_linear"), place)


def temporal(place: Path, of: Published) -> None:
    del of
    save({"D": draw(F, D), "E": draw(D, F), "b": draw(D)}, place / "latest_ckpt.safetensors")
    (place / "conf.yaml").write_text("sae: {exp_factor: 4}\n")


def dictionary_learning(place: Path, of: Published) -> None:
    kind = "BatchTopKSAE" if "andyrdt" in of.repository else "AutoEncoderTopK"
    weights = linear()
    weights["b_dec"] = weights.pop("decoder.bias")
    weights |= {"k": torch.tensor(8, dtype=torch.int32), "threshold": torch.tensor(0.3)}
    save(weights, place / "ae.pt")
    trainer = {"dict_class": kind, "k": 8, "activation_dim": D, "dict_size": F, "layer": of.layer}
    trainer |= {"lm_name": of.of.model, "submodule_name": f"resid_post_layer_{of.layer}"}
    (place / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))


def sparsify(place: Path, of: Published) -> None:
    weights = linear()
    tensors = {"encoder.weight": weights["encoder.weight"], "encoder.bias": weights["encoder.bias"]}
    tensors |= {"W_dec": weights["decoder.weight"].T, "b_dec": weights["decoder.bias"]}
    skips = "skip" in of.repository
    save({**tensors, **({"W_skip": draw(D, D)} if skips else {})}, place / "sae.safetensors")
    settings = {"k": 8, "num_latents": F, "d_in": D, "transcode": skips, "skip_connection": skips}
    (place / "cfg.json").write_text(json.dumps(settings))


def saelens(place: Path, of: Published) -> None:
    weights = row_vectors()
    weights.pop("threshold")
    save(weights, place / "sae_weights.safetensors")
    kinds = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    kind = next((kind for kind in kinds if kind.replace("_", "-") in of.repository or kind in of.path), "resid_post")
    settings = {"architecture": "standard", "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True}
    settings |= {"normalize_activations": "none", "metadata": {"hook_name": f"blocks.{of.layer}.hook_{kind}"}}
    (place / "cfg.json").write_text(json.dumps(settings))


WRITERS: dict[str, Callable[[Path, Published], None]] = {
    "circuit_tracer": circuit_tracer,
    "dictionary_learning": dictionary_learning,
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope_2,
    "goodfire": goodfire,
    "llama_scope": llama_scope,
    "qwen_scope": qwen_scope,
    "saelens": saelens,
    "sparsify": sparsify,
    "temporal": temporal,
}
"""Format -> what writes such files at a place."""


def write(of: Published, repository: Path) -> None:
    """Write the files of a published autoencoder into a folder that stands for its repository."""
    place = repository / of.path
    place.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[of.of.format](place, of)
