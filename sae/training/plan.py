"""What a run will do, settled and checked before any weight is read: sites, shapes, steps, memory, disk, time."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.config import ConfigError, TrainConfig, to_json
from sae.data.documents import Documents, open_documents
from sae.device import pick_device, product_rate
from sae.files import CorruptError, read_json
from sae.harvest.buffer import batches_in
from sae.harvest.language_model import ModelSource, locate_model, measure_width, skeleton
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.store import check_store
from sae.models.language import find_variant
from sae.models.saved import CONFIG, WEIGHTS
from sae.models.variants.base import Variant
from sae.training.optimizers import check_optimizer

CONFIG_FORMAT = 2
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
    inputs: list[Site]
    """Where the autoencoder reads."""
    targets: list[Site]
    """Where its reconstruction belongs; `inputs` again unless it transcodes."""
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
    def sites(self) -> list[Site]:
        """All places that are harvested, each once."""
        return list(dict.fromkeys([*self.inputs, *self.targets]))

    @property
    def dim(self) -> int:
        """Width of the autoencoder's inputs, all sites together."""
        return sum(widths(self.inputs))

    @property
    def dim_out(self) -> int:
        """Width of its reconstruction."""
        return sum(widths(self.targets))

    @property
    def training_tokens(self) -> int:
        """Tokens trained on, all epochs together."""
        return self.config.tokens * self.config.epochs

    @property
    def cached(self) -> bool:
        """Whether activations are kept (for several epochs, or because a store was named)."""
        return self.config.epochs > 1 or self.config.store is not None

    @property
    def store_identity(self) -> dict[str, Any]:
        """What a store of this harvest records of it."""
        harvest = to_json(self.config.harvest)
        return {
            "format": 1,
            "sites": {site.name: site.width for site in self.sites},
            "precision": self.config.harvest.store_precision,
            "data": self.documents.provenance,
            **{name: harvest[name] for name in ("model", "context", "contexts", "max_norm", "keep_special")},
            "model_revision": self.source.revision,
            "model_precision": self.config.harvest.precision,
        }


def widths(sites: list[Site]) -> list[int]:
    """Widths of the activations at sites that were measured."""
    return [site.width or 0 for site in sites]


def make_plan(config: TrainConfig) -> Plan:
    """Check everything that can be checked without reading weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    variant = find_variant(config.sae)
    _check_finite(config)
    _check_together(config, variant)
    check_optimizer(config.optim)
    device = pick_device(config.device)
    check_run_folder(config)
    batch = config.optim.batch or (4096 if device.type == "cuda" else 2048)
    if config.tokens < batch:
        raise ConfigError(f"--tokens {config.tokens}: less than one batch; expected at least --batch {batch}")
    source = locate_model(config.harvest.model, trust_remote_code=config.harvest.trust_remote_code)
    model = skeleton(source)
    _check_context(config, model)
    inputs = _resolve(model, "site", config.harvest.site, config.harvest.layer)
    if variant.several_sites != (len(inputs) > 1):
        expected = "two or more, with commas" if variant.several_sites else "one (several are for a crosscoder)"
        raise ConfigError(
            f"--site {config.harvest.site}: names {len(inputs)} places; --variant {config.sae.variant} reads {expected}"
        )
    targets = inputs
    if config.harvest.target_site is not None:
        targets = _resolve(model, "target_site", config.harvest.target_site, config.harvest.layer)
        if len(targets) != 1 or targets == inputs:
            raise ConfigError(f"--target-site {config.harvest.target_site}: expected one place, another than --site")
    documents = _open_documents(config)
    training_tokens = config.tokens * config.epochs
    plan = Plan(
        config=config,
        source=source,
        inputs=inputs,
        targets=targets,
        documents=documents,
        device=device,
        batch=batch,
        dead_after=config.sae.dead_after or max(1, min(10_000_000, training_tokens // 10)),
        auxk=config.sae.auxk or max(1, sum(widths(targets)) // 2),
        layer_parameters=_parameters_up_to(model, [*inputs, *targets]),
    )
    if config.store is not None:
        check_store(config.store, plan.store_identity)
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
        parent = _existing(out)
        if not parent.is_dir():
            raise ConfigError(f"--out {out}: {parent} is a file; expected a folder")
        if not os.access(parent, os.W_OK):
            raise ConfigError(f"--out {out}: {parent} cannot be written to")
        return
    if not (out / CONFIG).is_file():
        raise ConfigError(f"--resume: {out} holds no run to continue (it has no {CONFIG})")
    record = read_record(out)
    if (out / WEIGHTS).is_file() and record.get("autoencoder"):
        raise ConfigError(f"--resume: the run in {out} is finished; evaluate it with: sae eval {out}")
    saved, now = _flat(record["train"]), _flat(to_json(config))
    for name, value in now.items():
        if name not in MAY_CHANGE_ON_RESUME and saved.get(name) != value:
            raise ConfigError(
                f"--resume: {name} was {saved.get(name)!r} in {out}, now it is {value!r}; a run keeps its own"
            )
    if (saved.get("store") is None) != (config.store is None):
        raise ConfigError(
            f"--resume: --store was {saved.get('store')} in {out}, now it is {config.store}; a store may move, but a "
            "run that began without one goes on without (its batches come in another order)"
        )


def read_record(out: Path) -> dict[str, Any]:
    """What `run_record` put into a run's config.json.

    Raises:
        CorruptError: the file is not such a record.
    """
    record = read_json(out / CONFIG)
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in ("train", "data")):
        raise CorruptError(f"{out / CONFIG}: not the record of a run")
    return record


def run_record(plan: Plan, model_provenance: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds from the start: settings, versions, where model and data came from."""
    packages = ("sparsight", "torch", "transformers", "datasets", "numpy", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "format": CONFIG_FORMAT,
        "kind": "language",
        "train": to_json(plan.config),
        "sites": {
            "inputs": [_described(site) for site in plan.inputs],
            "targets": [_described(site) for site in plan.targets],
        },
        "model": model_provenance,
        "data": plan.documents.provenance,
        "versions": {"python": platform.python_version(), **versions},
        "autoencoder": None,
    }


def _described(site: Site) -> dict[str, Any]:
    return {"name": site.name, "path": site.path, "width": site.width}


def estimate(plan: Plan) -> dict[str, Any]:
    """Sites, shapes, steps, memory, disk and time of a run; the device's speed is measured on one product."""
    config, width = plan.config, plan.config.sae.width
    steps = plan.training_tokens // plan.batch
    needs = estimate_bytes(plan)
    rate = product_rate(plan.device)
    harvest_flops = 2 * plan.layer_parameters * config.tokens
    step_flops = 3 * (plan.dim + plan.dim_out) * width * plan.training_tokens
    return {
        "site": ", ".join(site.name for site in plan.inputs),
        "module": ", ".join(site.path for site in plan.inputs),
        **({} if plan.targets == plan.inputs else {"target_site": plan.targets[0].name}),
        "input": [plan.batch, plan.dim],
        "dictionary": [width, plan.dim_out],
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


def _resolve(model: torch.nn.Module, flag: str, names: str, layer: int | None) -> list[Site]:
    """The places that a flag names, with commas between them, their widths measured.

    Raises:
        ConfigError, SiteError: a name is empty or names no place.
    """
    spelled = [name.strip() for name in names.replace("+", ",").split(",")]
    if not all(spelled):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: expected names with one comma (or +) between two")
    sites = resolve_sites(model, spelled, layer=layer)
    if len(set(sites)) < len(sites):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: names one place twice")
    return [measure_width(model, site) for site in sites]


def _check_together(config: TrainConfig, variant: Variant) -> None:
    """Refuse settings that do not go together."""
    sae, harvest = config.sae, config.harvest
    if variant.transcodes != (harvest.target_site is not None):
        expected = "needs --target-site" if variant.transcodes else "has no --target-site (a transcoder has)"
        raise ConfigError(f"--variant {sae.variant}: {expected}")
    if sae.normalise == "layer_norm" and (variant.transcodes or variant.several_sites):
        raise ConfigError(f"--normalise layer_norm: undone with the input's own mean; not for --variant {sae.variant}")
    tied = variant.code(sae, 1).tied
    if tied and (sae.normalise == "whiten" or variant.several_sites):
        raise ConfigError(f"--variant {sae.variant}: atoms must keep equal norms; expected --normalise scale or centre")
    penalised = variant.penalty(sae) is not None
    for name, value in (("l0_target", sae.l0_target), ("sparsity", sae.sparsity)):
        aimed = name == "l0_target" and any(term.name == "l0_target" for term in variant.terms(sae))
        if value is not None and not penalised and not aimed:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: --variant {sae.variant} has no penalty; it keeps --k"
            )
    if sae.l0_target is not None and sae.sparsity is not None:
        raise ConfigError(f"--sparsity {sae.sparsity}: a fixed weight, and --l0-target asks for another; give one")
    if sae.k_start is not None and not hasattr(variant.code(sae, 1), "k"):
        raise ConfigError(f"--k-start {sae.k_start}: --variant {sae.variant} has no k to anneal")
    if sae.revival == "auxk" and tied:
        raise ConfigError(f"--revival auxk: --variant {sae.variant} has no pre-activations; expected resample or none")
    if variant.neighbours and (config.optim.batch or 2) % 2:
        raise ConfigError(f"--batch {config.optim.batch}: --variant {sae.variant} reads pairs; expected an even number")


def _in_memory(plan: Plan) -> bool:
    return plan.cached and plan.config.store is None


def _check_finite(config: TrainConfig) -> None:
    """Refuse infinities, which pass a check like "more than 0" and cannot be written as JSON."""
    for name, value in _flat(to_json(config)).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name.rpartition('.')[2].replace('_', '-')} {value}: expected a finite number")


def _check_context(config: TrainConfig, model: torch.nn.Module) -> None:
    settings: Any = model.config
    longest = getattr(settings.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < config.harvest.context:
        raise ConfigError(f"--context {config.harvest.context}: this model reads at most {longest} tokens")


def _open_documents(config: TrainConfig) -> Documents:
    """The training part of the data set; on resume the very data that the run began with."""
    settings = config.harvest
    began = read_record(config.out)["data"] if config.resume else None
    documents = open_documents(
        settings.dataset,
        text_field=settings.text_field,
        split="train",
        heldout=settings.heldout,
        revision=began.get("revision") if began else None,
    )
    for name, value in documents.provenance.items():
        if began is not None and began.get(name) != value:
            raise ConfigError(
                f"--resume: the data set {settings.dataset} has changed since the run began: {name} was "
                f"{began.get(name)!r}, now it is {value!r}"
            )
    return documents


def _check_space(plan: Plan) -> None:
    """Refuse what cannot fit: weights or activations in memory, a batch in the buffer, a run or store on its disk."""
    config, needs, available = plan.config, estimate_bytes(plan), available_memory(plan.device)
    if 4 * needs["weights"] > available:
        raise ConfigError(
            f"--width {config.sae.width}: weights, gradients and two moments take {4 * needs['weights'] >> 20} MiB of "
            f"memory, {available >> 20} MiB are free on the {plan.device.type}"
        )
    if _in_memory(plan):
        free = available_memory(torch.device("cpu"))
        if needs["store"] > free * 0.7:
            raise ConfigError(
                f"--epochs {config.epochs}: activations of {config.tokens} tokens take {needs['store'] >> 20} MiB of "
                f"memory, {free >> 20} MiB are free; keep them on disk: --store DIR"
            )
    else:
        row_bytes = sum(widths(plan.sites)) * getattr(torch, config.harvest.store_precision).itemsize
        overlap = plan.device.type == "cuda" and not plan.cached
        batches_in(config.buffer_mb << 20, row_bytes, plan.batch, overlap=overlap)
    for flag, folder, size in (("--out", config.out, needs["run"]), ("--store", config.store, needs["store"])):
        if folder is None:
            continue
        free = shutil.disk_usage(_existing(folder)).free
        size -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # what is there already
        if size > free:
            raise ConfigError(f"{flag} {folder}: {size >> 20} MiB are needed, {free >> 20} MiB are free on that disk")


def available_memory(device: torch.device) -> int:
    """Bytes that a process could still take: on Linux with what the page cache would give back."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def estimate_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of the weights, of the run folder (with checkpoints of weights and two moments), of all activations."""
    weights = (plan.dim + plan.dim_out) * plan.config.sae.width * 4
    row = sum(widths(plan.sites)) * getattr(torch, plan.config.harvest.store_precision).itemsize + 16
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
