"""What a run needs of memory, disk and time, and whether there is as much."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae.base.device import product_rate
from sae.base.files import existing
from sae.config import ConfigError
from sae.harvest.buffer import batches_in

if TYPE_CHECKING:
    from sae.training.plan import Plan


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


def check_space(plan: Plan) -> None:
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
        overlap = plan.device.type == "cuda" and not plan.cached
        batches_in(config.buffer_mb << 20, plan.row_bytes, plan.batch, overlap=overlap)
    for flag, folder, size in (("--out", config.out, needs["run"]), ("--store", config.store, needs["store"])):
        if folder is None:
            continue
        free = shutil.disk_usage(existing(folder)).free
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
    row = plan.row_bytes + 16
    run = weights * (1 + 3 * (plan.config.keep_checkpoints + 1))
    return {"weights": weights, "run": run, "store": plan.config.tokens * row}


def _in_memory(plan: Plan) -> bool:
    return plan.cached and plan.config.store is None
