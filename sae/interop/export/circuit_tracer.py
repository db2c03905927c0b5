"""circuit-tracer (0.5): `layer_L.safetensors` of a per-layer transcoder, and `config.yaml` of the set.

load_transcoders(config) reads a set with a file of every layer from 0: put the exports of the other layers beside it.

f = act(W_enc x + b_enc), x̂ = f W_dec + b_dec + x W_skip^T, W_enc and W_dec [F, d]; relu, or JumpReLU without a relu
before it. x is what `feature_input_hook` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sae.base.files import publish_file, save_tensors
from sae.interop.export import Finished, Place
from sae.modules.codes import JumpReLU, ReLU

FORMAT = "circuit-tracer"
INPUT_HOOKS = ("hook_resid_mid", "mlp.hook_in", "ln2.hook_normalized")
OUTPUT_HOOKS = ("hook_mlp_out",)
"""Hooks of a block that its models know (`utils/tl_nnsight_mapping.py`)."""


def write(run: Finished, out: Path) -> dict[str, Any]:
    model, code = run.model, run.model.code
    if not model.transcodes:
        run.refuse(FORMAT, "an autoencoder of one site: it traces transcoders, from an MLP's input to its output")
    if not isinstance(code, (ReLU, JumpReLU)):
        run.refuse(FORMAT, f"{run.described}: it has relu and JumpReLU")
    if model.per_token_norm:
        run.refuse(FORMAT, "a per-token norm")
    if model.dim != model.dim_out:
        run.refuse(FORMAT, f"{model.dim} inputs and {model.dim_out} outputs: it has one width")
    layer, hooks = _hooks(run)
    tensors = {
        "W_enc": model.W_enc,
        "W_dec": model.dictionary.W,
        "b_enc": model.b_enc,
        "b_dec": model.dictionary.b,
        **({"activation_function.threshold": code.theta} if isinstance(code, JumpReLU) else {}),
        **({} if model.W_skip is None else {"W_skip": model.W_skip}),
    }
    name = f"layer_{layer}.safetensors"
    save_tensors(out / name, {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()})
    config = {"model_name": run.language_model, "model_kind": "transcoder_set", **hooks, "scan": None}
    publish_file(out / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    return {
        "layer": layer,
        "load": f'circuit_tracer.transcoder.single_layer_transcoder.load_relu_transcoder("OUT/{name}", {layer})',
    }


def _hooks(run: Finished) -> tuple[int, dict[str, str]]:
    """The layer, and the settings that name the hooks within its block.

    Raises:
        ConfigError: the sites are of two layers, or elsewhere than at an MLP's two ends.
    """
    if not run.inputs or not run.targets:
        run.refuse(FORMAT, "a run without sites: its config.yaml names hooks")
    site, target = run.inputs[0], run.targets[0]
    reads, writes = _in_block(site), _in_block(target)
    if site.layer is None or site.layer != target.layer or reads not in INPUT_HOOKS or writes not in OUTPUT_HOOKS:
        ends = f"from {', '.join(INPUT_HOOKS)} to {', '.join(OUTPUT_HOOKS)} of one layer"
        run.refuse(FORMAT, f"a transcoder from {site.name} to {target.name}: it has those {ends}")
    return site.layer, {"feature_input_hook": reads, "feature_output_hook": writes}


def _in_block(place: Place) -> str:
    return (place.hook or "").removeprefix(f"blocks.{place.layer}.")
