"""What a store records of its harvest, so that a run on another model, text, site or precision is refused by name.

identity = store_identity(config.harvest, source, sites, documents.provenance, precision="auto")
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.files import sha256_of
from sae.config import ConfigError, HarvestConfig, to_json
from sae.harvest.language_model import ModelSource
from sae.harvest.precision import STORED
from sae.harvest.sites import Site
from sae.harvest.stream import Harvest

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer*.json", "tokenizer.model", "vocab.*", "merges.txt", "special_tokens_map.json", "spiece.model")
"""Files of a model's folder that decide how text becomes token ids."""
HASHES = ("model_sha256", "tokenizer_sha256")
NOT_COMPARED = ("format", "workers", "measured", "seal")
REMEDIES = {
    "model": "pass the store's --model",
    "model_sha256": "these weights are not those that were harvested: pass the store's --model",
    "tokenizer_sha256": "the tokenizer was changed since the harvest: restore its files",
    "model_revision": "the hub has another commit of the model now",
    "data": "pass the --dataset, --text-field and --heldout of the harvest, its files unchanged",
    "sites": "name a site of the store",
    "precision": "leave --store-precision out",
    "context": "pass the store's --context",
    "beginning": "pass the store's --bos",
}
"""What differs -> what helps beside another store."""


def check_identity(place: str | Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a store of another harvest than is wanted; one of more sites will do.

    Raises:
        ConfigError: names the first field that differs, both values and what helps.
    """
    hashed = recorded.get("model_sha256") is not None and wanted.get("model_sha256") is not None
    for name, value in wanted.items():
        other = recorded.get(name)
        more = name == "sites" and isinstance(other, dict) and value.items() <= other.items()
        any_precision = name == "precision" and value == "auto" and other in STORED
        any_contexts = name == "contexts" and value == "auto"
        # stores of earlier versions hold no hashes; with them the model's name does not matter, which may have moved
        passes = name in NOT_COMPARED or (name in HASHES and other is None) or (name == "model" and hashed)
        if other != value and not (more or any_precision or any_contexts or passes):
            remedy = f"{REMEDIES[name]}, or " if name in REMEDIES else ""
            raise ConfigError(
                f"--store {place}: it holds a harvest with {name} = {other!r}, this run wants {value!r}; {remedy}"
                "choose another folder"
            )


def store_identity(
    config: HarvestConfig, source: ModelSource, sites: Sequence[Site], data: dict[str, Any], *, precision: str
) -> dict[str, Any]:
    """JSON values that say what a harvest gives: the model's weights, the text, the places, the settings.

    Args:
        data: provenance of the documents.
        precision: in which activations are stored; auto until the first forward pass.
    """
    settings = to_json(config)
    return {
        "sites": {site.name: site.width for site in sites},
        "precision": precision,
        "data": data,
        **{name: settings[name] for name in ("model", "context", "contexts", "max_norm", "keep_special")},
        **({} if settings["roles"] is None else {"roles": settings["roles"]}),
        "model_revision": source.revision,
        "model_precision": config.precision,
        **content_hashes(source),
    }


def measured(harvest: Harvest) -> dict[str, Any]:
    """What a run on the store must know of the model and its stream, so that it need not load the model."""
    return {
        "model": harvest.lm.provenance,
        "norm_limits": dict(harvest.norm_limits),
        "isolation": harvest.isolation,
        "attention": harvest.attention.record(),
    }


def content_hashes(source: ModelSource) -> dict[str, str]:
    """SHA-256 of the weights and of the tokenizer's files; empty for a model on the hub, whose revision names them."""
    folder = Path(source.place)
    if source.revision is not None or not folder.is_dir():
        return {}
    if source.gguf:
        return {"model_sha256": _sha256(folder / source.gguf, (folder / source.gguf).stat().st_mtime_ns)}
    files = {"model_sha256": (*WEIGHTS, "config.json"), "tokenizer_sha256": TOKENIZER}
    return {name: _combined(folder, patterns) for name, patterns in files.items()}


def _combined(folder: Path, patterns: Sequence[str]) -> str:
    """SHA-256 over the names and hashes of the files in `folder` that match."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name} {_sha256(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    """Hex SHA-256 of a file, once in a process; `changed` is when it was last written."""
    return sha256_of(path)
