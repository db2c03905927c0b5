"""What a run will do, settled and checked before any weight is read: sites, shapes, steps, memory, disk, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.config import ConfigError, TrainConfig, to_json
from sae.data.documents import Documents, open_documents
from sae.device import pick_device, product_rate
from sae.files import read_json
from sae.harvest.language_model import ModelSource, locate_model, skeleton
from sae.harvest.sites import Site, resolve_sites
from sae.models.language import find_variant
from sae.models.saved import CONFIG, WEIGHTS

CONFIG_FORMAT = 1
MAY_CHANGE_ON_RESUME = {
    "resume",
    "device",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "wandb",
    "out",
    "store",
}


class Plan(NamedTuple):
    """A checked run."""

    config: TrainConfig
    source: ModelSource
    sites: list[Site]
    """Input site first."""
    documents: Documents
    """The training part."""
    device: torch.device
    batch: int
    """Tokens a step."""
    dead_after: int
    """Tokens without firing after which a latent is dead."""
    auxk: int
    """Dead latents the auxiliary loss uses."""
    layer_parameters: int
    """Parameters of the language model that a harvest runs through."""

    @property
    def width_in(self) -> int:
        """Width of the activations."""
        return self.sites[0].width

    @property
    def training_tokens(self) -> int:
        """Tokens trained on, all epochs together."""
        return self.config.tokens * self.config.epochs

    @property
    def cached(self) -> bool:
        """Whether activations are kept (for several epochs, or because a store was named)."""
        return self.config.epochs > 1 or self.config.store is not None


def make_plan(config: TrainConfig) -> Plan:
    """Check everything that can be checked without reading weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    find_variant(config.sae.variant)
    device = pick_device(config.device)
    check_run_folder(config)
    source = locate_model(config.harvest.model, trust_remote_code=config.harvest.trust_remote_code)
    model = skeleton(source)
    sites = resolve_sites(model, [config.harvest.site], layer=config.harvest.layer)
    if len(sites) != 1:
        raise ConfigError(f"--site {config.harvest.site}: names {len(sites)} places; one autoencoder reads one")
    documents = open_documents(
        config.harvest.dataset, text_field=config.harvest.text_field, split="train", heldout=config.harvest.heldout
    )
    batch = config.optim.batch or (4096 if device.type == "cuda" else 2048)
    if config.tokens < batch:
        raise ConfigError(f"--tokens {config.tokens}: less than one batch; expected at least --batch {batch}")
    training_tokens = config.tokens * config.epochs
    plan = Plan(
        config=config,
        source=source,
        sites=sites,
        documents=documents,
        device=device,
        batch=batch,
        dead_after=config.sae.dead_after or max(1, min(10_000_000, training_tokens // 10)),
        auxk=config.sae.auxk or max(1, sites[0].width // 2),
        layer_parameters=_parameters_up_to(model, sites),
    )
    _check_space(plan)
    return plan


def check_run_folder(config: TrainConfig) -> None:
    """Refuse a run folder in use, a finished one, or one of another configuration.

    Raises:
        ConfigError: says which, and what to do.
    """
    out = config.out
    if not config.resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: exists already; choose another folder, or continue that run with --resume")
        parent = next(p for p in (out, *out.absolute().parents) if p.exists())
        if not os.access(parent, os.W_OK):
            raise ConfigError(f"--out {out}: {parent} cannot be written to")
        return
    if not (out / CONFIG).is_file():
        raise ConfigError(f"--resume: {out} holds no run to continue (it has no {CONFIG})")
    if (out / WEIGHTS).is_file() and read_json(out / CONFIG).get("autoencoder"):
        raise ConfigError(f"--resume: the run in {out} is finished; evaluate it with: sae eval {out}")
    saved, now = _flat(read_json(out / CONFIG)["train"]), _flat(to_json(config))
    for name, value in now.items():
        if name not in MAY_CHANGE_ON_RESUME and saved.get(name) != value:
            raise ConfigError(
                f"--resume: {name} was {saved.get(name)!r} in {out}, now it is {value!r}; a run keeps its own"
            )


def run_record(plan: Plan, model_provenance: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds from the start: settings, versions, where model and data came from."""
    packages = ("sparsight", "torch", "transformers", "datasets", "numpy", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "format": CONFIG_FORMAT,
        "kind": "language",
        "train": to_json(plan.config),
        "site": {"name": plan.sites[0].name, "path": plan.sites[0].path, "width": plan.width_in},
        "model": model_provenance,
        "data": plan.documents.provenance,
        "versions": {"python": platform.python_version(), **versions},
        "autoencoder": None,
    }


def estimate(plan: Plan) -> dict[str, Any]:
    """Sites, shapes, steps, memory, disk and time of a run; the device's speed is measured on one product."""
    config, d, width = plan.config, plan.width_in, plan.config.sae.width
    steps = plan.training_tokens // plan.batch
    needs = estimate_bytes(plan)
    rate = product_rate(plan.device)
    harvest_flops = 2 * plan.layer_parameters * config.tokens
    step_flops = 6 * d * width * plan.training_tokens
    return {
        "site": plan.sites[0].name,
        "module": plan.sites[0].path,
        "input": [plan.batch, d],
        "dictionary": [width, d],
        "steps": steps,
        "training_tokens": plan.training_tokens,
        "memory_bytes": {
            "language_model": plan.layer_parameters * (4 if plan.device.type == "cpu" else 2),
            "weights_gradients_moments": 4 * needs["weights"],
            "activations": needs["store"] if _in_memory(plan) else min(needs["store"], config.buffer_mb << 20),
        },
        "disk_bytes": {"run": needs["run"], "store": needs["store"] if config.store else 0},
        "seconds": {
            "harvest": round(harvest_flops / rate / 0.7, 1),
            "training": round(step_flops / rate / 0.7, 1),
        },
        "device": str(plan.device),
        "measured_gflops": round(rate / 1e9, 1),
    }


def _in_memory(plan: Plan) -> bool:
    return plan.cached and plan.config.store is None


def _check_space(plan: Plan) -> None:
    """Refuse what cannot fit: activations in memory, a run or store on a full disk."""
    needs = estimate_bytes(plan)
    if _in_memory(plan):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needs["store"] > available * 0.7:
            raise ConfigError(
                f"--epochs {plan.config.epochs}: activations of {plan.config.tokens} tokens take "
                f"{needs['store'] >> 20} MiB of memory, {available >> 20} MiB are free; keep them on disk: --store DIR"
            )
    for flag, folder, size in (
        ("--out", plan.config.out, needs["run"]),
        ("--store", plan.config.store, needs["store"]),
    ):
        if folder is None:
            continue
        free = shutil.disk_usage(_existing(folder)).free
        if size > free:
            raise ConfigError(f"{flag} {folder}: {size >> 20} MiB are needed, {free >> 20} MiB are free on that disk")


def estimate_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of the weights, of the run folder (with checkpoints of weights and two moments), of all activations."""
    weights = 2 * plan.config.sae.width * plan.width_in * 4
    row = plan.width_in * getattr(torch, plan.config.harvest.store_precision).itemsize + 16
    run = weights * (1 + 3 * (plan.config.keep_checkpoints + 1))
    return {"weights": weights, "run": run, "store": plan.config.tokens * row}


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _parameters_up_to(model: torch.nn.Module, sites: list[Site]) -> int:
    """Parameters of the modules that run before the last site, embeddings left out (they are looked up)."""
    paths = [name for name, _ in model.named_modules()]
    last = max(paths.index(site.path) for site in sites)
    inside = {name for name in paths[: last + 1]}
    inside |= {name for name in paths for site in sites if name.startswith(site.path + ".")}
    embeddings = {id(m) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    total = 0
    for name, module in model.named_modules():
        if name in inside and id(module) not in embeddings:
            total += sum(p.numel() for p in module.parameters(recurse=False))
    return total


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
