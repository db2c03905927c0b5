"""OpenAI's autoencoders for GPT-2 small (Gao et al. 2024): one torch file of a dict.

latents = act(W (x - pre_bias) + latent_bias), x̂ = Σ latents w + pre_bias (openai/sparse_autoencoder, `model.py`). Where
the activation is TopK, each token is normalised, and this is undone, (x - mean) / (sd + 1e-5), x̂ sd + mean; the older
ones (v1, v4) are a ReLU on the raw activations. The file names no place: its path does, as in OpenAI's storage,
`gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt`.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, Origin, assemble
from sae.interop.files import shapes_in, take, tensors_in, values_in
from sae.modules.codes import Code, ReLU, TopK

NAMES = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
SITES = {
    "resid_post_mlp": "resid_post.{}",
    "resid_post_attn": "resid_mid.{}",
    "resid_delta_mlp": "mlp_out.{}",
    "resid_delta_attn": "attn_out.{}",
    "mlp_post_act": "h.{}.mlp.c_proj:in",
}
"""Location in OpenAI's paths -> our site."""


def recognises(path: Path) -> bool:
    return path.is_file() and set(shapes_in(path)) >= NAMES


def read(path: Path) -> Imported:
    tensors, values = tensors_in(path), values_in(path)
    if missing := sorted(NAMES - set(tensors)):
        raise CorruptError(f"{path}: {', '.join(missing)} is missing; it holds {', '.join(sorted(tensors))}")
    width, dim = len(tensors["latent_bias"]), len(tensors["pre_bias"])
    shapes = {"encoder.weight": (width, dim), "decoder.weight": (dim, width), "pre_bias": (dim,)}
    weights = take(tensors, {**shapes, "latent_bias": (width,)}, source=path, ignore=STATISTICS)
    activation = str(values.get("activation", "ReLU"))
    model = assemble(
        _code(path, activation, values.get("activation_state_dict") or {}),
        W_enc=weights["encoder.weight"],
        b_enc=weights["latent_bias"],
        W_dec=weights["decoder.weight"].T,
        b_dec=weights["pre_bias"],
        centred=True,
        per_token_norm=activation == "TopK",
        source=str(path),
    )
    site = _site(path)
    return Imported(
        model,
        Origin(
            "OpenAI",
            architecture=activation,
            model="gpt2",
            sites=() if site is None else (site,),
            context=64,
            normalisation="layer_norm" if activation == "TopK" else None,
        ),
    )


def _code(path: Path, activation: str, settings: dict) -> Code:
    if activation == "ReLU":
        return ReLU()
    if activation != "TopK":
        raise ConfigError(f"{path}: activation {activation!r} cannot be held; expected TopK or ReLU")
    if "k" not in settings:
        raise CorruptError(f"{path}: activation_state_dict: k is missing")
    if (after := settings.get("postact_fn", "ReLU")) != "ReLU":
        raise ConfigError(f"{path}: activation_state_dict: postact_fn {after!r} cannot be held; expected ReLU")
    return TopK(int(settings["k"]))


def _site(path: Path) -> str | None:
    match = re.search(rf"({'|'.join(SITES)})(?:_v\w+)?/autoencoders/(\d+)\.\w+$", path.absolute().as_posix())
    return SITES[match[1]].format(match[2]) if match else None
