"""The training step of the GPU kit: ours by the floor of its device, and that of other implementations."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from setting import Row, Setting, Shape, peak_memory


def rows_of(shape: Shape, setting: Setting) -> Any:
    """A batch of random activations."""
    import torch

    return torch.randn(shape.tokens, shape.d, generator=torch.Generator().manual_seed(0)).to(setting.device)


def timed_step(shape: Shape, x: Any, setting: Setting, **optim: Any) -> Row:
    """Time and peak memory of the step with some settings, against the floor of its state's size."""
    import torch

    from sae_kernels.bench.timing import copy_function, interleaved

    # trainers refer to themselves
    gc.collect()
    before = None if setting.toy else torch.cuda.memory_allocated() - 4 * x.numel()
    with setting.kernels():
        trainer = topk_trainer(shape, x, setting.device, **optim)
        peak_memory(setting)
        # a graph is captured at the third step
        for _ in range(1 if setting.toy else 4):
            trainer.step(x, x)
        memory = peak_memory(setting)
        copy, copied = copy_function(setting.device, 1 if setting.toy else 1024)
        short = trainer.model.W_enc.detach().to(trainer.compute)
        rows, out = (
            x.to(trainer.compute),
            torch.empty(shape.tokens, shape.width, dtype=trainer.compute, device=x.device),
        )
        functions: dict[str, Callable[[], Any]] = {
            "product": partial(torch.mm, rows, short.T, out=out),
            "copy": copy,
            "step": partial(trainer.step, x, x),
        }
        times = interleaved(functions, setting.rounds, setting.device)
    size = sum(t.numel() * t.element_size() for t in (*trainer.model.parameters(), *trainer.optimizer.tensors.values()))
    product, step = times["product"].median, times["step"].median
    # all of it is read and written
    state = times["copy"].median * 2 * size / copied
    row: Row = {
        **shape._asdict(),
        "route": trainer.route.name,
        "graphs": 0 if trainer.graph is None else trainer.graph.captures,
        "product ms": product,
        "state ms": state,
        "floor ms": product + state,
        "step ms": step,
        "x floor": step / (product + state),
        "tokens/s": shape.tokens / step * 1e3,
    }
    if memory is not None and before is not None:
        needed = size + 4 * x.numel()
        row |= {"peak GB": (memory - before) / 2**30, "x weights, moments, batch": (memory - before) / needed}
    return row


def timed_peer(name: str, make: Callable[..., Any], shape: Shape, x: Any, setting: Setting) -> Row:
    """Milliseconds of another implementation's step; why there are none, where it cannot run."""
    import torch

    from sae_kernels.bench.timing import interleaved

    if name == "sparsify" and importlib.util.find_spec("sparsify") is None:
        return {f"{name} ms": "not installed"}
    try:
        step = make(shape, x)
        return {f"{name} ms": interleaved({name: step}, min(3, setting.rounds), setting.device)[name].median}
    except torch.OutOfMemoryError:
        return {f"{name} ms": "out of memory"}
    finally:
        if not setting.toy:
            torch.cuda.empty_cache()


def topk_trainer(shape: Shape, x: Any, device: str, **optim: Any) -> Any:
    """The trainer of `sae train --variant topk`, initialised; weights are drawn on the device, which takes no time."""
    import torch

    from sae.config import OptimConfig, SAEConfig
    from sae.models.language import recipe_of
    from sae.training.trainer import Trainer

    class DrawnOnDevice(Trainer):
        def _draw_weights(self) -> None:
            atoms = torch.nn.functional.normalize(torch.randn_like(self.model.dictionary.W), dim=1)
            for parameter in (self.model.dictionary.W, self.model.W_enc):
                parameter.data.copy_(atoms)
            self.model.b_enc.data.zero_()

    with torch.device(device):
        recipe = recipe_of(SAEConfig(width=shape.width, k=shape.k), [shape.d])
    trainer = DrawnOnDevice(
        recipe,
        OptimConfig(**optim),
        steps=1000,
        dead_after=10**9,
        auxk=shape.d // 2,
        device=torch.device(device),
        seed=0,
    )

    trainer.initialise([x[:2048]], [x[:2048]])
    # the untrained model is not needed, and would count as memory of the step
    trainer.recipe = recipe._replace(model=trainer.model)
    return trainer


def dense_step(shape: Shape, x: Any) -> Callable[[], Any]:
    """A TopK step as PyTorch does it without sparse kernels: dense codes, autocast to bfloat16, fused Adam."""
    import torch

    W_enc, W_dec = (torch.nn.Parameter(torch.randn(shape.width, shape.d, device=x.device) * 0.01) for _ in range(2))
    b_enc = torch.nn.Parameter(torch.zeros(shape.width, device=x.device))
    b_dec = torch.nn.Parameter(torch.zeros(shape.d, device=x.device))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=1e-4, fused=x.is_cuda)

    def step() -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            values, indices = ((x - b_dec) @ W_enc.T + b_enc).topk(shape.k, dim=1)
            codes = torch.zeros(len(x), shape.width, device=x.device, dtype=values.dtype)
            loss = (x - codes.scatter(1, indices, values.relu()) @ W_dec - b_dec).float().square().sum(1).mean()
        loss.backward()
        adam.step()
        adam.zero_grad()

    return step


def sparsify_step(shape: Shape, x: Any) -> Callable[[], Any]:
    """The step of EleutherAI's sparsify, as its trainer takes it, under autocast to bfloat16."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(shape.d, SparseCoderConfig(num_latents=shape.width, k=shape.k), device=x.device)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=x.is_cuda)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            loss = coder(x).fvu
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step
