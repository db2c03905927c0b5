"""Tokens a second of the bare forward pass, of the harvest, and of training from live text, in one run.

    python scripts/bench/harvest.py [--json]

The floor is the model cut after the site's layer, run on the same token ids with nothing attached: no hook, no
tokenizer, no boundaries between documents. Rounds of floor and harvest alternate; figures are medians. Training is live
(no store) with a small dictionary, its rate compared with the harvest's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from pathlib import Path

import torch

from sae.base.device import pick_device, product_rate
from sae.base.tables import number
from sae.config import HarvestConfig, OptimConfig, SAEConfig
from sae.data.documents import open_documents
from sae.data.packing import BEGINNING, Contexts
from sae.harvest.buffer import LiveBatches
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model
from sae.harvest.sites import find_blocks, resolve_sites
from sae.harvest.stream import Harvest
from sae.models.language import recipe_of
from sae.training.trainer import Trainer

LAYER = 9


def cut_model(lm: LanguageModel, layer: int) -> torch.nn.Module:
    """The model's body with the layers up to `layer`, sharing weights, without its head."""
    body = copy.copy(lm.model.base_model)
    body._modules = dict(body._modules)
    name = find_blocks(lm.model).path.rsplit(".", 1)[-1]
    body._modules[name] = body._modules[name][: layer + 1]
    return body


def rate(tokens: int, seconds: float) -> float:
    """Tokens a second."""
    return tokens / seconds


def bare_rates(body: torch.nn.Module, contexts: list[Contexts]) -> float:
    """Tokens a second of plain forward passes over the contexts."""
    start = time.perf_counter()
    with torch.no_grad():
        for batch in contexts:
            body(input_ids=batch.tokens.to(next(body.parameters()).device), use_cache=False)
    return rate(sum(b.tokens.numel() for b in contexts), time.perf_counter() - start)


def live_rate(harvest: Harvest, width: int, tokens: int, device: torch.device) -> float:
    """Tokens a second (all that go through the model) of training on a live stream."""
    site = harvest.sites[0]
    batches = LiveBatches(
        harvest,
        [site.name],
        [site.name],
        batch=1024,
        tokens=tokens,
        buffer_bytes=8 << 20,
        dtype=torch.float16,
        seed=0,
        overlap=device.type == "cuda",
        on_restart=lambda n: None,
    )
    config = SAEConfig(width=width, k=16)
    trainer = Trainer(
        recipe_of(config, [site.width or 0]),
        OptimConfig(),
        steps=batches.steps,
        dead_after=10**9,
        auxk=1,
        device=device,
        seed=0,
    )
    stream = batches.iterate(None)
    first = next(stream)
    trainer.initialise([first.input], [first.target])
    trainer.step(first.input, first.target)  # compiles the kernels
    harvest.counts.clear()
    start = time.perf_counter()
    for batch in stream:
        trainer.step(batch.input, batch.target)
    return rate(sum(harvest.counts.values()), time.perf_counter() - start)


def measure(rounds: int, passes: int, live_tokens: int) -> dict[str, object]:
    """All figures as JSON values."""
    device = pick_device("auto")
    lm = load_language_model(locate_model("demo", trust_remote_code=False), device=device, precision="auto")
    config = HarvestConfig(model="demo", dataset="demo", layer=LAYER)
    sites = resolve_sites(lm.model, ["resid_post"], layer=LAYER)
    harvest = Harvest(lm, sites, open_documents("demo"), config)
    _ = harvest.norm_limits  # measured before the clock starts
    body = cut_model(lm, LAYER)
    contexts = list(itertools.islice(harvest.contexts(BEGINNING), rounds * passes + 1))
    bare_rates(body, contexts[:1])
    bare, full = [], []
    stream = harvest.batches()
    for i in range(rounds):
        bare.append(bare_rates(body, contexts[i * passes : (i + 1) * passes]))
        start, tokens = time.perf_counter(), 0
        for step in itertools.islice(stream, passes):
            tokens += step.contexts.tokens.numel()
            harvest.trained_on(step.rows)
        full.append(rate(tokens, time.perf_counter() - start))
    live = live_rate(harvest, 512, live_tokens, device)
    floor, got = statistics.median(bare), statistics.median(full)
    return {
        "bench": "harvest",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "product_gflops": round(product_rate(device) / 1e9, 1),
        "layer": LAYER,
        "bare_forward_tokens_s": round(floor, 1),
        "harvest_tokens_s": round(got, 1),
        "harvest_over_bare": round(got / floor, 4),
        "live_training_tokens_s": round(live, 1),
        "live_training_over_harvest": round(live / got, 4),
    }


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--rounds", type=int, default=7, help="alternations of floor and harvest")
    parser.add_argument("--passes", type=int, default=2, help="forward passes in each")
    parser.add_argument("--live-tokens", type=int, default=65_536, help="tokens of the live training run")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.passes, arguments.live_tokens)
    if not arguments.json:
        for name, value in figures.items():
            print(f"{name:30} {number(value)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
