"""SAELens (6.54): `cfg.json`, `sae_weights.safetensors`, and `sparsity.safetensors` where features were collected.

SAE.load_from_disk(out)

It reads xt = x - b_dec, pre = xt W_enc + b_enc, with W_enc [d, F] and W_dec [F, d]; a transcoder reads x itself. A
gated code has its magnitude's bias apart: b_mag = s + e^r b for ours (see `Gated`). Thresholds are those of JumpReLU,
after a relu. Layer norm is applied to an SAE's inputs and undone, of a transcoder's output it is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import save_tensors, write_json
from sae.features.store.store import FeatureStore
from sae.features.store.writer import STORE
from sae.interop.export import Finished, Place
from sae.modules.codes import Gated, JumpReLU, TopK

FORMAT, VERSION = "saelens", "6.54.12"
ARCHITECTURES = {
    ("relu", False, False): "standard",
    ("relu", True, False): "transcoder",
    ("relu", True, True): "skip_transcoder",
    ("jumprelu", False, False): "jumprelu",
    ("jumprelu", True, False): "jumprelu_transcoder",
    ("jumprelu", True, True): "jumprelu_skip_transcoder",
    ("topk", False, False): "topk",
    ("gated", False, False): "gated",
}
"""Code, whether it transcodes, whether it has a skip connection -> architecture."""


def write(run: Finished, out: Path) -> dict[str, Any]:
    architecture = _architecture(run)
    save_tensors(out / "sae_weights.safetensors", {name: t.contiguous() for name, t in _tensors(run).items()})
    write_json(out / "cfg.json", _settings(run, architecture))
    if (run.folder / STORE).is_file():
        save_tensors(out / "sparsity.safetensors", {"sparsity": _log_density(run)})
    return {"architecture": architecture, "load": 'sae_lens.SAE.load_from_disk("OUT")'}


def _architecture(run: Finished) -> str:
    """What SAELens calls it.

    Raises:
        ConfigError: it has no such architecture.
    """
    model = run.model
    key = (model.code.name, model.transcodes, model.W_skip is not None)
    if model.code.name == "matching_pursuit":
        run.refuse(FORMAT, "a pursuit that selects an atom once: SAELens' may select it again, and adds its values")
    if key not in ARCHITECTURES:
        run.refuse(FORMAT, run.described)
    if model.transcodes and model.per_token_norm:
        run.refuse(FORMAT, "a per-token norm in a transcoder: it would not be undone in the output")
    if isinstance(model.code, JumpReLU) and (below := int((model.code.theta < 0).sum())):
        run.refuse(FORMAT, f"thresholds below 0 ({below} latents): a relu comes first")
    return ARCHITECTURES[key]


@torch.no_grad()
def _tensors(run: Finished) -> dict[str, Tensor]:
    model, code = run.model, run.model.code
    tensors = {"W_enc": model.W_enc.T, "W_dec": model.dictionary.W, "b_dec": model.dictionary.b}
    if isinstance(code, Gated):
        tensors |= {"b_gate": model.b_enc, "r_mag": code.r, "b_mag": code.s + code.r.exp() * model.b_enc}
    else:
        tensors["b_enc"] = model.b_enc
    if isinstance(code, JumpReLU):
        tensors["threshold"] = code.theta
    if model.W_skip is not None:
        tensors["W_skip"] = model.W_skip
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _settings(run: Finished, architecture: str) -> dict[str, Any]:
    model, code = run.model, run.model.code
    return {
        "architecture": architecture,
        "d_in": model.dim,
        "d_sae": model.width,
        **({"d_out": model.dim_out} if model.transcodes else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not model.transcodes,
        "normalize_activations": "layer_norm" if model.per_token_norm else "none",
        # its hook for the heads gives [..., heads, width of a head], which it then joins
        "reshape_activations": "hook_z" if run.inputs and (run.inputs[0].hook or "").endswith("hook_z") else "none",
        **({"k": code.k, "rescale_acts_by_decoder_norm": False} if isinstance(code, TopK) else {}),
        "metadata": _metadata(run),
    }


def _metadata(run: Finished) -> dict[str, Any]:
    """Without `sae_lens_version` of 6 or more, SAELens would drop all of it."""
    site = run.inputs[0] if run.inputs else None
    target = run.targets[0] if run.model.transcodes and run.targets else None
    return {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": VERSION,
        "model_name": run.language_model,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": None if site is None else site.hook or site.path,
        "hook_head_index": None,
        "hf_hook_name": None if site is None else _module(site),
        **(
            {} if target is None else {"hook_name_out": target.hook or target.path, "hf_hook_name_out": _module(target)}
        ),
        "context_size": run.context,
        "prepend_bos": run.bos,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "dataset_path": run.dataset,
        "exclude_special_tokens": not run.keeps_special,
        "sequence_separator_token": "bos" if run.bos else None,
        "disable_concat_sequences": False,
        "trained_with": f"sparsight, variant {run.variant}",
    }


def _module(place: Place) -> str | None:
    """Path in transformers; SAELens' own files of Gemma Scope 2 mark a module's input like this."""
    return f"{place.module}.input" if place.module is not None and place.side == "input" else place.module


def _log_density(run: Finished) -> Tensor:
    """log10 of the share of tokens at which each latent fires, plus 1e-10 [F]."""
    store = FeatureStore(run.folder)
    counts = torch.from_numpy(store.scalars["count"].astype("float64"))
    return (counts / store.info["tokens"] + 1e-10).log10().float()
