"""`sae doctor`: what is here, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

import torch

from sae.base.device import product_rate
from sae.base.threads import reason
from sae.data.cache import cache_dir

PACKAGES = ("sparsight", "torch", "transformers", "datasets", "numba", "triton", "gguf", "wandb", "tyro", "safetensors")


def examine() -> dict[str, Any]:
    """Versions, device, kernel backends, cache and space as JSON values; "missing" lists what to mend and how."""
    versions = {name: _version(name) for name in PACKAGES}
    cache = cache_dir()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    missing = [f"{name}: pip install {name}" for name, version in versions.items() if version is None]
    if importlib.util.find_spec("pip") is None and not (cache / "demo").exists():
        missing.append("pip: python -m ensurepip (the demo's model and text are fetched with it)")
    if not os.access(existing, os.W_OK):
        missing.append(f"cache: {existing} cannot be written to; set SAE_CACHE to a folder that can")
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": f"{torch.get_num_threads()}, from {reason(torch.get_num_threads())}",
        "measured_gflops": round(product_rate(device) / 1e9, 1),
        "kernel_backends": {
            "cpu": "numba" if versions["numba"] else "PyTorch reference (numba is missing)",
            "gpu": ("Triton" if versions["triton"] else "PyTorch reference") if gpu else "no GPU",
        },
        "cache": str(cache),
        "cache_mb": sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) >> 20 if cache.exists() else 0,
        "demo_model_in_cache": any(cache.glob("demo/*/model.safetensors")),
        "disk_free_mb": shutil.disk_usage(existing).free >> 20,
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "missing": missing or ["nothing"],
        "status": 1 if missing else 0,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
