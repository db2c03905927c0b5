"""The fused route on a GPU takes the steps of the autograd route; tests/kernel_process.py runs these tests.

Under Triton's interpreter the trainers are on the CPU and told to use the kernels of a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import RECIPES, Pair, initialise, planted, relative, run, trainer_of, use_autograd

from gpu_device import DEVICE
from sae.training.routes import FusedRoute
from sae.training.trainer import Trainer
from sae_kernels import last_backend, use_backend

# Adam's epsilon is large here, as a gradient that is all rounding error would else move its weight by a whole step
EPS = 1e-3
ROWS = 16


def on_gpu(settings: dict[str, Any], **optim: Any) -> Trainer:
    with use_backend("gpu"):
        trainer = trainer_of(
            {"width": 48, **settings}, steps=60, dead_after=1000, optim={"eps": EPS, **optim}, device=DEVICE
        )
    assert isinstance(trainer.route, FusedRoute)
    return trainer


def started(trainer: Trainer, batches: list[Pair]) -> Trainer:
    """With some latents dead from the start, and few enough firing for listed codes."""
    with use_backend("naive"):
        initialise(trainer, batches)
    with torch.no_grad():
        if trainer.sparsity is None and trainer.model.code.name in ("jumprelu", "gated"):
            trainer.model.b_enc.sub_(2.5)
        trainer.model.dictionary.tokens_since_fired[::7] = 10**6
        trainer.model.b_enc[::7] -= 0.5
    return trainer


def stepped(settings: dict[str, Any], batches: list[Pair], **optim: Any) -> Trainer:
    trainer = started(on_gpu(settings, **optim), batches)
    with use_backend("gpu"):
        run(trainer, batches)
    return trainer


def by_autograd(settings: dict[str, Any], batches: list[Pair], **optim: Any) -> Trainer:
    trainer = on_gpu(settings, **optim)
    use_autograd(trainer)
    with use_backend("naive"):
        return run(started(trainer, batches), batches)


def fused_on_gpu(settings: dict[str, Any]) -> bool:
    with use_backend("gpu"):
        return trainer_of(settings, steps=1).route.name == "fused"


VARIANTS = [name for name, settings in RECIPES.items() if fused_on_gpu(settings)]


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_the_autograd_route(name: str) -> None:
    batches = planted(50, rows=ROWS) if name in ("topk", "matryoshka", "jumprelu, wide") else planted(6, rows=ROWS)
    ours, theirs = stepped(RECIPES[name], batches), by_autograd(RECIPES[name], batches)
    state, other = ours.state()[0], theirs.state()[0]
    for key, tensor in state.items():
        if tensor.is_floating_point():
            assert relative(tensor.double(), other[key].double()) < 1e-4, key
    window, expected = ours.window(), theirs.window()
    assert window.parts == pytest.approx(expected.parts, rel=1e-4, abs=1e-6)
    for field in ("loss", "fvu", "l0", "grad_norm", "dead"):
        assert getattr(window, field) == pytest.approx(getattr(expected, field), rel=1e-4), field
