"""Time of collection beside harvest and encoding, its memory, and the time of reading its store.

    python scripts/bench/collect.py [--model demo --dataset demo --layer 9 --width 4608] [--wide 131072] [--json]

Harvest and encoding alternate with collecting the resulting codes over the forward passes of one corpus; the added
share is the time of collecting over that of the rest. An untrained TopK autoencoder is used in place of a trained one:
its latents fire more evenly, so that buffers fill more slowly and more events are merged. Memory is the largest
resident set of a process that collects made-up codes over --wide latents, less what it had before. The reader is timed
on the store written from them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/features")]


def measure_added(model: str, dataset: str, layer: int, width: int, tokens: int) -> dict[str, Any]:
    """Seconds a token of harvest and encoding, and of collecting, in alternation over one pass."""
    from sae.base.device import pick_device
    from sae.config import HarvestConfig, SAEConfig
    from sae.data.documents import open_documents
    from sae.data.packing import BEGINNING
    from sae.features.collect.text_chunks import live_chunks
    from sae.features.store.collection import Collection
    from sae.harvest.language_model import load_language_model, locate_model, skeleton
    from sae.harvest.sites import resolve_sites
    from sae.harvest.stream import Harvest
    from sae.models.language import build

    config = HarvestConfig(model=model, dataset=dataset, layer=layer)
    device = pick_device("auto")
    source = locate_model(model, trust_remote_code=False)
    sites = resolve_sites(skeleton(source), ["resid_post"], layer=layer)
    lm = load_language_model(source, device=device, precision="auto")
    harvest = Harvest(lm, sites, open_documents(dataset), config)
    _ = harvest.norm_limits  # measured before the clock starts
    dim = sites[0].width or 0
    autoencoder = build(SAEConfig(width=width, k=32), dim).to(device)
    autoencoder.initialise(torch.Generator().manual_seed(0))
    collection = Collection(width, 0, device)
    base, added, seen = [], [], 0
    for chunk in live_chunks(harvest, list(BEGINNING)):
        begin = time.perf_counter()
        read = chunk.read()
        x = read.rows.activations[sites[0].name].float()
        with torch.no_grad():
            # without a trained pre-bias every token's codes would be those of the mean
            codes = autoencoder.encode(x - x.mean(0))
        _wait(device)
        middle = time.perf_counter()
        collection.add(codes, read.tokens, read.text)
        collection.flush()
        _wait(device)
        base.append(middle - begin)
        added.append(time.perf_counter() - middle)
        seen += chunk.tokens
        if seen >= tokens:
            break
    per_step = seen / len(base)
    later = len(base) // 2
    return {
        "device": device.type,
        "width": width,
        "tokens": seen,
        "harvest_and_encode_us_per_token": 1e6 * statistics.median(base) / per_step,
        "collect_us_per_token": 1e6 * sum(added) / seen,
        "collect_us_per_token_second_half": 1e6 * statistics.median(added[later:]) / per_step,
        "added_share": sum(added) / sum(base),
    }


def measure_memory(width: int, folder: Path) -> dict[str, Any]:
    """Bytes of a collection over `width` latents and of its process, and the time to write its store."""
    from synthetic_store import synthetic_collection, synthetic_vocabulary  # pyright: ignore[reportMissingImports]

    synthetic_collection(64, tokens=4096)  # what torch needs for itself
    before = _resident()
    collection = synthetic_collection(width)
    collected = _resident()
    tensors = [*vars(collection.statistics).values()]
    for buffer in collection.buffers.values():
        tensors += [buffer.place, buffer.value, buffer.window, buffer.threshold]
    begin = time.perf_counter()
    from synthetic_store import synthetic_info  # pyright: ignore[reportMissingImports]

    from sae.features.store.writer import write_store

    write_store(folder, collection, synthetic_vocabulary(), synthetic_info(collection), np.ones(width, np.float32))
    return {
        "latents": width,
        "tensors_megabytes": sum(t.numel() * t.element_size() for t in tensors) / 1e6,
        "collecting_megabytes": (collected - before) / 1e6,
        "writing_megabytes": (_resident() - before) / 1e6,
        "write_seconds": time.perf_counter() - begin,
        "store_megabytes": (folder / "features.sqlite").stat().st_size / 1e6,
    }


def measure_reader(folder: Path) -> dict[str, float]:
    """Median milliseconds of the page's queries to a store, each latent queried once."""
    from sae.features.store.related import coactive
    from sae.features.store.search import search
    from sae.features.store.store import FeatureStore

    begin = time.perf_counter()
    store = FeatureStore(folder)
    result = {"open_ms": 1e3 * (time.perf_counter() - begin)}
    draw = np.random.default_rng(0)
    latents = draw.permutation(store.width).tolist()

    def listed(_: int) -> Any:
        picked = np.flatnonzero((store.scalars["density"] > 1e-5) & (store.scalars["max"] > 1))
        return picked[np.argsort(-store.scalars["entropy"][picked], kind="stable")][:100]

    asked: dict[str, Callable[[int], Any]] = {
        "filter_and_sort_ms": listed,
        "record_ms": lambda i: store.record(latents[i]),
        "record_as_json_ms": lambda i: json.dumps(store.record(latents[1000 + i])),
        "coactive_ms": lambda i: coactive(store, latents[2000 + i]),
        "search_ms": lambda i: search(store, ("river", "stone", "你好", "song12", "<b>")[i % 5]),
    }
    for name, ask in asked.items():
        times = []
        for i in range(25):
            begin = time.perf_counter()
            ask(i)
            times.append(time.perf_counter() - begin)
        result[name] = 1e3 * statistics.median(times)
    return result


def _resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--wide", type=int, default=131_072)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_only:
        print(json.dumps(measure_memory(arguments.wide, arguments.memory_only)))
        return
    with tempfile.TemporaryDirectory() as folder:
        # in another process, since the largest resident set never falls
        command = [sys.executable, __file__, "--memory-only", folder, "--wide", str(arguments.wide)]
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        report = {"memory": memory, "reader": measure_reader(Path(folder))}
    added = measure_added(arguments.model, arguments.dataset, arguments.layer, arguments.width, arguments.tokens)
    report = {"added": added, **report}
    if not arguments.json:
        from sae.base.tables import number

        for group, values in report.items():
            for name, value in values.items():
                print(f"{group + '.' + name:<44}{value if isinstance(value, str) else number(value)}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
