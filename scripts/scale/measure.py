"""What one rank computes, what a link carries and what two ranks take for a step, on this machine.

torchrun --standalone --nproc-per-node 2 -m scripts.scale.measure measured.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from sae.base.ranks import Ranks
from sae.config import OptimConfig, SAEConfig
from sae.models.language import recipe_of
from sae.training.distributed.mesh import Mesh
from sae.training.distributed.shape import Shape
from sae.training.distributed.trainer import MeshTrainer
from sae_kernels.bench.timing import machine

D, K = 256, 16
ALONE = [(256, 1024), (256, 4096), (1024, 1024), (1024, 4096), (512, 2048)]
"""Rows and latents of the steps that every rank takes by itself; the model is fitted to them."""
TOGETHER = [(1024, 2048), (2048, 4096)]
"""Rows and latents of the steps that all ranks take together; the model has to foretell them."""
SIZES = [1 << 10, 1 << 16, 1 << 20, 1 << 23]
"""Bytes of the all-reduces that the link is fitted to."""
ROUNDS, WARM = 15, 4


class NoMesh(Mesh):
    """A rank by itself, whatever the number of processes."""

    def __init__(self, device: torch.device) -> None:
        self.shape, self.device, self.i_data, self.i_latent = Shape(1, 1), device, 0, 0
        self.bytes, self.seconds = Counter(), Counter()


def main() -> None:
    """Measure, and let the first rank write the result."""
    torch.set_num_threads(1)
    with Ranks.of_process("cpu") as ranks:
        device = torch.device("cpu")
        # all ranks are at work at once, as in a job: they share the memory's bandwidth
        alone = [_steps(NoMesh(device), ranks, rows, latents) for rows, latents in ALONE]
        link = [_reduce(size, ranks) for size in SIZES]
        together = []
        for shape in (Shape(ranks.world, 1), Shape(1, ranks.world)):
            mesh = Mesh(shape, device)
            together += [_steps(mesh, ranks, rows, latents) for rows, latents in TOGETHER]
        result = {
            "ranks": ranks.world, "d": D, "k": K, "alone": alone, "link": link, "together": together,
            "machine": machine("cpu"),
        }  # fmt: skip
    if ranks.first:
        Path(sys.argv[1]).write_text(json.dumps(result))


def _steps(mesh: Mesh, ranks: Ranks, rows: int, latents: int) -> dict[str, Any]:
    """Times of a training step of TopK over `rows` rows of a batch and `latents` latents, in all ranks of the mesh."""

    def make() -> Any:
        return recipe_of(SAEConfig(variant="topk", width=latents, k=K), [D])

    trainer = MeshTrainer(
        make, OptimConfig(lr=1e-5), mesh=mesh, ranks=ranks, steps=10**6, auxk=0, dead_after=10**9, device=mesh.device,
        seed=0,
    )  # fmt: skip
    share = rows // mesh.shape.data
    x = torch.randn(share, D, generator=torch.Generator().manual_seed(mesh.i_data))
    trainer.initialise([x], [x], active=1.0)
    before = Counter(mesh.bytes)
    seconds = _timed(lambda: trainer.step(x, x), ranks)
    sent = {name: (mesh.bytes[name] - before[name]) / (ROUNDS + WARM) for name in mesh.bytes}
    return {
        "rows": rows, "latents": latents, "data": mesh.shape.data, "latent": mesh.shape.latent,
        "seconds": statistics.median(seconds), "spread": _spread(seconds), "bytes": sent,
    }  # fmt: skip


def _reduce(size: int, ranks: Ranks) -> dict[str, Any]:
    values = torch.zeros(size // 4)
    seconds = _timed(lambda: distributed.all_reduce(values), ranks)
    return {"bytes": size, "seconds": statistics.median(seconds)}


def _timed(call: Callable[[], object], ranks: Ranks) -> list[float]:
    """Times of the slowest rank, without the first calls."""
    seconds = []
    for _ in range(WARM + ROUNDS):
        ranks.any(False)
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    of_ranks = zip(*ranks.gather(seconds[WARM:]), strict=True)
    return [max(times) for times in of_ranks]


def _spread(seconds: list[float]) -> float:
    """Standard deviation of the logarithm; half of the range between the 16th and the 84th percentile."""
    logs = torch.tensor(seconds, dtype=torch.float64).log()
    low, high = torch.quantile(logs, torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
    return (high - low) / 2


if __name__ == "__main__":
    main()
