"""A pooled dictionary: the latents of one run that other runs have too, as a run of their own.

    write_pool(subject, scores, Path("runs/stable"), at_least=0.8)

The atoms, encoder rows and thresholds are the first run's, unchanged. Means of matched atoms would lie nearer to what
the seeds share, but no encoder was trained for them. A selection of the k largest takes k of the latents that are left.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae.base.files import publish_folder, publish_json
from sae.config import ConfigError
from sae.evaluation.matching.scores import Scores
from sae.evaluation.matching.sources import Subject
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG, WEIGHTS, load, read_config, save_weights
from sae.modules.codes import make_code


def check_pool(subject: Subject) -> None:
    """Refuse a run of which no dictionary of some latents can be made.

    Raises:
        ConfigError: a checkpoint, or an autoencoder with parts that mix latents.
    """
    if subject.kind == "checkpoint":
        raise ConfigError(f"--pool: {subject.name} is a checkpoint; the first run must be a finished one")
    if subject.space is None or (subject.encoder is None and not load(subject.folder).code.tied):
        raise ConfigError(f"--pool: {subject.name} has a stem, a head, or several encoder rows a latent")


def write_pool(subject: Subject, scores: Scores, out: Path, at_least: float) -> dict[str, Any]:
    """Write a run of the latents whose stability is `at_least`; JSON values: "out", "latents" and their share.

    Raises:
        ConfigError: no latent is that stable.
    """
    with np.errstate(invalid="ignore"):  # an unknown stability is not enough
        latents = torch.from_numpy(np.flatnonzero(scores.stability >= at_least))
    if not len(latents):
        best = float(np.nanmax(scores.stability))
        raise ConfigError(f"--at-least {at_least}: no latent of {subject.name} is that stable; the best has {best:.3f}")
    record = copy.deepcopy(read_config(subject.folder))
    pooled = narrowed(load(subject.folder), latents)
    # whoever opens it reads its size from the settings too, and the form in which it was trained
    trained = record.get("train", {})
    for settings in (trained.get("sae"), trained.get("vision"), record.get("training", {}).get("form")):
        for name, value in (("width", len(latents)), ("k", len(latents))):
            if settings is not None and settings.get(name) is not None:
                settings[name] = min(settings[name], value)
    record["pooled"] = {
        "from": subject.name,
        "weights": subject.weights,
        "at_least": at_least,
        "latents": latents.tolist(),
        "runs": [run["name"] for run in scores.info["runs"]],
    }
    probe = load_file(subject.folder / WEIGHTS)["selftest.inputs"]
    with publish_folder(out) as folder:
        record["autoencoder"] = save_weights(folder, pooled, probe)
        publish_json(folder / CONFIG, record)
    return {"out": str(out), "latents": len(latents), "share": len(latents) / subject.width}


@torch.no_grad()
def narrowed(model: Autoencoder, latents: Tensor) -> Autoencoder:
    """An autoencoder with some latents (int64 [n]) of another, and all else as it is."""
    count = len(latents)
    description = model.code.describe()
    for name, value in (("width", count), ("k", min(description.get("k", count), count))):
        if name in description:
            description[name] = value
    code = make_code(description)
    state = {name: t[latents] if t.ndim and len(t) == model.width else t for name, t in model.code.state_dict().items()}
    code.load_state_dict(state)
    smaller = Autoencoder(
        model.dim,
        count,
        code,
        dim_out=model.dim_out,
        transcodes=model.transcodes,
        skip=model.W_skip is not None,
        per_token_norm=model.per_token_norm,
        unit_atoms=model.dictionary.unit,
    )
    smaller.dictionary.W.copy_(model.dictionary.W[latents])
    smaller.dictionary.b.copy_(model.dictionary.b)
    if not code.tied:
        smaller.W_enc.copy_(model.W_enc[latents])
        smaller.b_enc.copy_(model.b_enc[latents])
    if model.W_skip is not None and smaller.W_skip is not None:
        smaller.W_skip.copy_(model.W_skip)
    return smaller.eval()
