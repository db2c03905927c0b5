"""Run folders of every variant with random weights, for what reads or writes finished runs; nothing is trained.

    folder = made_run(tmp_path / "run", "jumprelu", "whiten")

Weights are as training leaves them: unit atoms, biases and thresholds that matter, the normalisation fitted to inputs
with a mean and folded. The record is that of an imported run without text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import publish_json
from sae.config import SAEConfig, to_json
from sae.models.language import VARIANTS, build, find_variant
from sae.models.saved import CONFIG, save_weights
from sae.modules.normalise import fit, layer_norm

NORMALISE = ("scale", "centre", "layer_norm", "whiten")
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"variant": name} for name in VARIANTS},
    "transcoder-relu": {"variant": "transcoder", "base": "relu"},
    "transcoder-jumprelu": {"variant": "transcoder", "base": "jumprelu"},
    "skip_transcoder-topk": {"variant": "skip_transcoder", "base": "topk"},
    "skip_transcoder-relu": {"variant": "skip_transcoder", "base": "relu"},
}
"""Name -> settings: every variant, and transcoders over other codes."""


def allowed(name: str, normalise: str) -> bool:
    """Whether `sae train` takes the two together."""
    variant = find_variant(SAEConfig(width=8, k=2, **SETTINGS[name]))
    tied = build(SAEConfig(width=8, k=2, **SETTINGS[name]), 4).code.tied
    if normalise == "layer_norm":
        return not (variant.transcodes or variant.several_sites)
    return not (tied and normalise == "whiten")


def activations(count: int, dim: int, seed: int) -> Tensor:
    """Correlated inputs [count, dim] of unequal variance, with a mean."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, dim, generator=draw) @ (torch.randn(dim, dim, generator=draw) / 4 + torch.eye(dim))
    return 3 * mixed + 4 * torch.randn(dim, generator=draw)


@torch.no_grad()
def made_run(
    folder: Path, name: str, normalise: str = "scale", *, dim: int = 32, width: int = 96, k: int = 8, layer: int = 1
) -> Path:
    """Write a finished run; returns its folder."""
    config = SAEConfig(width=width, k=k, normalise=normalise, **SETTINGS[name])  # type: ignore[arg-type]
    variant = find_variant(config)
    sites = [dim, dim] if variant.several_sites else [dim]
    model = build(config, sum(sites), sum(sites))
    x = activations(400, sum(sites), seed=1)
    inputs = fit(normalise, x, sites)
    targets = fit(normalise, activations(400, dim, seed=2), [dim]) if variant.transcodes else inputs
    draw = torch.Generator().manual_seed(0)
    model.initialise(draw)
    model.dictionary.b.copy_(0.3 * torch.randn(model.dim_out, generator=draw))
    if not model.code.tied:
        model.W_enc.mul_(0.5 + torch.rand(width, 1, generator=draw))
        model.b_enc.copy_(0.3 * torch.randn(width, generator=draw) - 1)
    if model.W_skip is not None:
        model.W_skip.copy_(0.3 * torch.randn(model.W_skip.shape, generator=draw))
    for parameter in model.code.parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=draw))
    rows = inputs.apply(x)
    rows = layer_norm(rows)[0] if model.per_token_norm else rows
    code = model.code.settled(rows, model.W_enc, model.b_enc, model.b_pre)
    folded = model.like(code).folded(inputs, targets)
    folder.mkdir(parents=True)
    origin = {
        "sites": [f"mlp_in.{layer}"] if variant.transcodes else [f"resid_post.{layer + i}" for i in range(len(sites))],
        "targets": [f"mlp_out.{layer}"] if variant.transcodes else [],
        "model": "tiny-llama",
        "context": 64,
        "bos": True,
    }
    record = {"format": 2, "kind": "weights", "train": {"sae": to_json(config)}, "imported": origin}
    publish_json(folder / CONFIG, {**record, "autoencoder": save_weights(folder, folded, x)})
    return folder
