"""`sae bench variants`: the time of a training step of every variant beside the first one's (TopK's), at equal L0."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from sae.config import OptimConfig, SAEConfig
from sae.models.language import find_variant, recipe_of
from sae.training.trainer import Trainer
from sae_kernels.bench.timing import machine

STILL = 1e-12  # learning rate so small that L0 stays where it is set


def measure_variants(
    specs: Sequence[str], *, tokens: int, d: int, width: int, k: int, rounds: int, device: str
) -> dict[str, Any]:
    """Median time of a step of each variant; every round times all of them, at about k active latents a token.

    The encoder biases of a penalised variant are set to that L0, and a tiny learning rate keeps it there. A transcoder
    reads and writes random activations of width d, a crosscoder two sites of width d / 2.
    """
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.randn(tokens, d, generator=draw) for _ in range(2))
    trainers = {}
    for spec in specs:
        name, *parts = spec.split(":")
        settings: dict[str, Any] = dict(part.split("=", 1) for part in parts)
        sae = SAEConfig(variant=name, width=width, k=k, **settings)
        row = find_variant(sae)
        trainer = Trainer(
            recipe_of(sae, [d // 2, d // 2] if row.several_sites else [d]),
            OptimConfig(lr=STILL),
            steps=10**6,
            dead_after=10**9,
            auxk=d // 2,
            device=torch.device(device),
            seed=0,
        )
        trainer.initialise([x], [other if row.transcodes else x], active=1.0)
        target = other if row.transcodes else x
        adjacent = torch.ones(tokens // 2, dtype=torch.bool) if row.neighbours else None
        trainers[spec] = (trainer, target, adjacent)
    seconds: dict[str, list[float]] = {spec: [] for spec in specs}
    for turn in range(rounds + 2):
        for spec, (trainer, target, adjacent) in trainers.items():
            begun = time.perf_counter()
            trainer.step(x, target, adjacent)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first compile and warm up
                seconds[spec].append(time.perf_counter() - begun)
    floor = statistics.median(seconds[specs[0]])
    rows = []
    for spec, (trainer, _, _) in trainers.items():
        window = trainer.window()
        median = statistics.median(seconds[spec])
        rows.append(
            {
                "variant": spec,
                "route": trainer.route.name,
                "L0": window.l0,
                "median ms": 1e3 * median,
                "fastest ms": 1e3 * min(seconds[spec]),
                f"x {specs[0]}": median / floor,
            }
        )
    shape = {"N": tokens, "d": d, "F": width, "k": k}
    return {"bench": "variants", "shape": shape, "rows": rows, "machine": machine(device)}
