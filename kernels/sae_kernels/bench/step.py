"""Time of a whole TopK training step beside its two floors: the encode product, and the bytes of weights and moments.

    result = measure_step(tokens=2048, d=576, width=9216, k=32)
    result["ratio"]          # fused step / product
    result["x floor"]        # fused step / (product + state bytes over the copy rate); the aim is 1.15

A step is encode, decode, backward and Adam with projected gradients and unit-norm atoms, without AuxK.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_kernels.adam_step.op import adam_step, clip_scale
from sae_kernels.bench.timing import Timing, copy_function, interleaved, machine
from sae_kernels.buffers import Workspace
from sae_kernels.dispatch import backends_used, use_backend
from sae_kernels.fused_step.op import Parameters, fused_forward, fused_update
from sae_kernels.sparse_decode.op import sparse_decode
from sae_kernels.topk_encode.op import topk_encode

ADAM_BYTES = 24
"""A weight and its two moments in float32, each read and written."""


class Problem:
    """Weights, moments and one batch, with three implementations of a step on them."""

    def __init__(self, tokens: int, d: int, width: int, k: int, device: str = "cpu") -> None:
        draw = torch.Generator().manual_seed(0)
        atoms = torch.nn.functional.normalize(torch.randn(width, d, generator=draw))
        parts = (atoms.clone(), torch.zeros(width), atoms, torch.zeros(d))
        self.params = Parameters(*(part.to(device) for part in parts))
        self.m, self.v = (Parameters(*(torch.zeros_like(p) for p in self.params)) for _ in range(2))
        self.x = torch.randn(tokens, d, generator=draw).to(device)
        self.k, self.step, self.workspace = k, 0, Workspace()

    def fused(self, max_norm: float | None = None) -> None:
        """The fused step."""
        self.step += 1
        forward = fused_forward(self.params, self.x, self.k, workspace=self.workspace)
        fused_update(self.params, self.m, self.v, forward, step=self.step, lr=1e-5, max_norm=max_norm)

    def autograd(self) -> None:
        """The same step with whole gradients from autograd."""
        self.step += 1
        leaves = Parameters(*(p.detach().requires_grad_() for p in self.params))
        codes = topk_encode(self.x, leaves.W_enc, leaves.b_enc, self.k, leaves.b_dec)
        residual = self.x - sparse_decode(codes, leaves.W_dec, leaves.b_dec)
        residual.square().sum(1).mean().backward()
        grads: list[Tensor] = [leaf.grad for leaf in leaves if leaf.grad is not None]
        scale = clip_scale(torch.stack([grad.norm() for grad in grads]).norm(), 1.0)
        for place, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            moments = self.m[place], self.v[place]
            adam_step(param, grad, *moments, step=self.step, lr=1e-5, scale=scale, unit_rows=place == 2)

    def dense(self) -> None:
        """The same step in plain PyTorch: dense codes and gradients."""
        with use_backend("naive"):
            self.autograd()

    def product(self) -> Callable[[], Any]:
        """The one product that no exact step can avoid, into a reused buffer."""
        out = torch.empty(self.x.shape[0], self.params.W_enc.shape[0], device=self.x.device)
        return lambda: torch.mm(self.x, self.params.W_enc.T, out=out)


def measure_step(
    tokens: int = 2048, d: int = 576, width: int = 9216, k: int = 32, rounds: int = 15, device: str = "cpu"
) -> dict[str, Any]:
    """Interleaved timings of the product, the fused step, its encode, the step through autograd and in plain PyTorch.

    The extra memory is the growth of the process in its first steps, when weights, moments and batch are allocated and
    the functions are compiled, but the product's N x F buffer is not there yet.
    """
    Problem(64, d, 512, k).fused()  # compiles
    problem = Problem(tokens, d, width, k, device)
    extra = _growth(lambda: (problem.fused(1.0), problem.fused())) if device == "cpu" else None
    backends = {name: backends_used()[name] for name in ("topk_encode", "fused_forward", "fused_update")}
    copy, copied = copy_function(device)
    functions: dict[str, Callable[[], Any]] = {
        "encode product": problem.product(),
        "copy": copy,
        "fused step": problem.fused,
        "fused step, clipped": lambda: problem.fused(1.0),
        "encode": lambda: topk_encode(problem.x, *problem.params[:2], k, problem.params.b_dec),
        "step through autograd": problem.autograd,
        "step in plain PyTorch": problem.dense,
    }
    times = interleaved(functions, rounds, device)
    copying = times.pop("copy")
    state_bytes = ADAM_BYTES * sum(parameter.numel() for parameter in problem.params)
    product = times["encode product"]
    state = Timing(*(ms * state_bytes / copied for ms in (copying.median, copying.fastest)))
    floor = Timing(product.median + state.median, product.fastest + state.fastest)
    times = {
        "encode product": product,
        "state bytes at the copy rate": state,
        "floor, the sum of both": floor,
        **{name: time for name, time in times.items() if name != "encode product"},
    }
    rows = [
        {
            "what": name,
            "median ms": time.median,
            "fastest ms": time.fastest,
            "x product": time.median / product.median,
            "x product, fastest": time.fastest / product.fastest,
            "x floor": time.median / floor.median,
            "x floor, fastest": time.fastest / floor.fastest,
        }
        for name, time in times.items()
    ]
    return {
        "bench": "step",
        "shape": {"N": tokens, "d": d, "F": width, "k": k},
        "rows": rows,
        "ratio": times["fused step"].median / product.median,
        "ratio_fastest": times["fused step"].fastest / product.fastest,
        "x floor": times["fused step"].median / floor.median,
        "x floor, fastest": times["fused step"].fastest / floor.fastest,
        "copy GB/s": copied / copying.median / 1e6,
        "extra_megabytes": extra,
        "backends": backends,
        "machine": machine(device),
    }


def measure_curve(
    widths: Sequence[int] = (4096, 8192, 16384, 32768, 65536, 131072),
    tokens: int = 2048,
    d: int = 576,
    k: int = 32,
    rounds: int = 5,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times of the fused step and of the product alone for several numbers of latents."""
    rows = []
    for width in widths:
        problem = Problem(tokens, d, width, k, device)
        times = interleaved({"product": problem.product(), "step": lambda p=problem: p.fused(1.0)}, rounds, device)
        rows.append(
            {
                "F": width,
                "product ms": times["product"].median,
                "step ms": times["step"].median,
                "ratio": times["step"].median / times["product"].median,
                "ratio, fastest": times["step"].fastest / times["product"].fastest,
                "step ns / latent / token": 1e6 * times["step"].median / width / tokens,
            }
        )
    shape = {"N": tokens, "d": d, "k": k}
    return {"bench": "step curve", "shape": shape, "rows": rows, "machine": machine(device)}


def _growth(function: Callable[[], Any]) -> float:
    """Megabytes by which the process's peak memory grew."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
