"""Weak scaling of training on a mesh: work a rank stays the same, on 1, 2 and 4 processes of one thread each (gloo).

    python scripts/bench/ranks.py [--ranks 1,2,4] [--axis data|latent] [--width 4608] [--dim 576] [--rows 2048] [--json]

Along data every rank trains on `--rows` rows of a step; along latents it holds `--width` latents. Rows are random, so
that steps alone are timed: no language model runs. Efficiency is the time of a step on one rank over that on n; on
fewer cores than ranks it says little. A rank's share of time in exchanges has its wait for slower ranks in it. Prints a
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sae.base.ranks import Ranks
from sae.base.tables import number
from sae.config import OptimConfig, SAEConfig
from sae.models.language import recipe_of
from sae.training.distributed.mesh import Mesh
from sae.training.distributed.shape import Shape
from sae.training.distributed.trainer import MeshTrainer

UNTIMED = 3  # steps that compile and allocate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of processes")
    parser.add_argument("--axis", choices=("data", "latent"), default="data")
    parser.add_argument("--variant", default="topk")
    parser.add_argument("--width", type=int, default=4608, help="latents (of a rank, along latents)")
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rows", type=int, default=2048, help="rows of a step (of a rank, along data)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps; the median counts")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.add_argument("--rank-of-a-job", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of_a_job:
        time_steps(arguments)
        return
    results = [launch(int(ranks)) for ranks in arguments.ranks.split(",")]
    for result in results:
        result["efficiency"] = results[0]["step_ms"] / result["step_ms"]
    if not arguments.json:
        for result in results:
            print("  ".join(f"{name} {number(value)}" for name, value in result.items()))
    settings = {name: getattr(arguments, name) for name in ("axis", "variant", "width", "dim", "k", "rows", "steps")}
    print(json.dumps({**settings, "cores": len(os.sched_getaffinity(0)), "results": results}))


def launch(ranks: int) -> dict[str, Any]:
    """The figures of a job of so many processes."""
    job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [str(Path(__file__).resolve()), *sys.argv[1:], "--rank-of-a-job"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([*job, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def time_steps(arguments: argparse.Namespace) -> None:
    """Take steps in this rank; the first one prints what they cost."""
    with Ranks.of_process("cpu") as ranks:
        shape = Shape(ranks.world, 1) if arguments.axis == "data" else Shape(1, ranks.world)
        mesh = Mesh(shape, torch.device("cpu"))
        config = SAEConfig(variant=arguments.variant, width=arguments.width * shape.latent, k=arguments.k)
        trainer = MeshTrainer(
            lambda: recipe_of(config, [arguments.dim]), OptimConfig(), mesh=mesh, ranks=ranks,
            steps=UNTIMED + arguments.steps, dead_after=10**9, auxk=arguments.dim // 2, device=mesh.device, seed=0,
        )  # fmt: skip
        draw = torch.Generator().manual_seed(mesh.i_data)
        batches = [torch.randn(arguments.rows, arguments.dim, generator=draw) for _ in range(4)]
        trainer.initialise(batches, batches)
        seconds: list[float] = []
        for step in range(UNTIMED + arguments.steps):
            if step == UNTIMED:
                mesh.bytes.clear()
                mesh.seconds.clear()
            ranks.any(False)  # all begin together
            begun = time.perf_counter()
            trainer.step(batches[step % 4], batches[step % 4])
            seconds.append(time.perf_counter() - begun)
        timed = seconds[UNTIMED:]
        if ranks.first:
            result = {
                "ranks": ranks.world,
                "mesh": str(shape),
                "step_ms": 1e3 * statistics.median(timed),
                "tokens_per_second": shape.data * arguments.rows / statistics.median(timed),
                "bytes_per_step": sum(mesh.bytes.values()) // arguments.steps,
                "share_in_exchanges": sum(mesh.seconds.values()) / sum(timed),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
