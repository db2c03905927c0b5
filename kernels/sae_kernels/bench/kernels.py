"""Time of every op beside its floor, measured in the same run, and beside plain PyTorch.

The floor of an encode is its product into a reused output. The floor of the other ops is the bytes they must move over
the speed of a large copy. Every gathered row counts as read from memory, so an op whose rows are in the cache can be
faster than its floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sae_kernels.adam_step.op import adam_step
from sae_kernels.batch_topk_encode.op import batch_topk_encode
from sae_kernels.bench.step import Problem
from sae_kernels.bench.timing import copy_function, interleaved, machine
from sae_kernels.dispatch import last_backend, use_backend
from sae_kernels.fused_step.op import StepForward, fused_forward, fused_update
from sae_kernels.latent_sweep.op import latent_sweep
from sae_kernels.sparse_decode.op import sparse_decode
from sae_kernels.threshold_encode.op import threshold_encode
from sae_kernels.topk_encode.op import topk_encode


def measure_kernels(
    tokens: int = 2048, d: int = 576, width: int = 9216, k: int = 32, rounds: int = 9, device: str = "cpu"
) -> dict[str, Any]:
    """Interleaved timings of every op, of the floors, and of the reference."""
    problem = Problem(tokens, d, width, k, device)
    ops = _ops(problem)
    copy, copied = copy_function(device)
    functions: dict[str, Callable[[], Any]] = {"product": problem.product(), "copy": copy}
    for name, (op, _) in ops.items():
        functions[name] = op
        functions[f"naive {name}"] = _naive(op)
    with torch.no_grad():
        times = interleaved(functions, rounds, device)
        rows = []
        for name, (op, moved) in ops.items():
            op()
            floor = times["product"].median if moved is None else times["copy"].median * moved / copied
            rows.append(
                {
                    "op": name,
                    "backend": last_backend(name),
                    "ms": times[name].median,
                    "fastest ms": times[name].fastest,
                    "floor ms": floor,
                    "x floor": times[name].median / floor,
                    "GB/s": None if moved is None else moved / times[name].median / 1e6,
                    "naive ms": times[f"naive {name}"].median,
                    "x faster than naive": times[f"naive {name}"].median / times[name].median,
                }
            )
    return {
        "bench": "kernels",
        "shape": {"N": tokens, "d": d, "F": width, "k": k},
        "rows": rows,
        "product GFLOP/s": 2e-6 * tokens * d * width / times["product"].median,
        "copy GB/s": copied / times["copy"].median / 1e6,
        "machine": machine(device),
    }


def _ops(problem: Problem) -> dict[str, tuple[Callable[[], Any], int | None]]:
    """Op name -> a call of it, and the bytes it must move, or None if the product is the floor."""
    x, params, k = problem.x, problem.params, problem.k
    (tokens, d), width = x.shape, params.W_enc.shape[0]
    codes = topk_encode(x, params.W_enc, params.b_enc, k, params.b_dec)
    theta = float(codes.values.median())
    guess = float(batch_topk_encode(x, params.W_enc, params.b_enc, k, params.b_dec).values.min())
    residual = x - sparse_decode(codes, params.W_dec, params.b_dec)
    grad = torch.ones_like(params.W_dec)
    moments = torch.zeros_like(grad), torch.zeros_like(grad)

    def compare() -> StepForward:
        return fused_forward(params, x, codes=codes, workspace=problem.workspace)

    forward = compare()
    listed, weights, batch = 4 * tokens * k * d, 4 * width * d, 4 * tokens * d
    encode = x, params.W_enc, params.b_enc

    def update() -> None:
        fused_update(params, problem.m, problem.v, forward, step=1, lr=0.0)

    def adam() -> None:
        adam_step(params.W_dec, grad, *moments, step=1, lr=0.0, unit_rows=True)

    return {
        "topk_encode": (lambda: topk_encode(*encode, k, params.b_dec), None),
        "threshold_encode": (lambda: threshold_encode(*encode, theta, 0.0, params.b_dec), None),
        "batch_topk_encode": (lambda: batch_topk_encode(*encode, k, params.b_dec, guess), None),
        "sparse_decode": (lambda: sparse_decode(codes, params.W_dec, params.b_dec), listed + batch),
        # decoder rows for the value gradients, two rows an entry, two gradients written
        "latent_sweep": (lambda: latent_sweep(codes, residual, x, params.W_dec), 3 * listed + 2 * weights),
        "adam_step": (adam, 7 * weights),
        "fused_forward": (
            lambda: fused_forward(params, x, codes=codes, workspace=problem.workspace),
            listed + 5 * batch,
        ),
        # two rows an entry; two matrices and their moments read and written
        "fused_update": (update, 2 * listed + 12 * weights),
    }


def _naive(op: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with use_backend("naive"):
            op()

    return run
