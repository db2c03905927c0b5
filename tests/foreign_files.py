"""Runs of ours as other tools would save them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file


def sparsify_folder(folder: Path, run, **changes) -> Path:
    """The finished run's TopK autoencoder as sparsify would save it, at the output of block 1."""
    model = run.model
    where = folder / "layers.1"
    where.mkdir(parents=True)
    weights = {
        "encoder.weight": model.W_enc,
        "encoder.bias": model.b_enc,
        "W_dec": model.dictionary.W,
        "b_dec": model.dictionary.b,
    }
    save_file({name: t.detach().clone() for name, t in weights.items()}, where / "sae.safetensors")
    settings = {"k": model.code.k, "num_latents": model.width, "d_in": model.dim, "activation": "topk", **changes}
    (where / "cfg.json").write_text(json.dumps(settings))
    return where
