"""The fused route on a GPU takes the steps of the autograd route; tests/kernel_process.py runs these tests.

Under Triton's interpreter the trainers are on the CPU and told to use the kernels of a GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from planted import (
    RECIPES,
    Pair,
    initialise,
    note_dense_steps,
    planted,
    relative,
    run,
    trainer_of,
    use_autograd,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from gpu_device import DEVICE
from sae.config import ConfigError
from sae.training.graphs import StepGraph
from sae.training.routes import FusedRoute
from sae.training.trainer import DivergedError, Trainer
from sae_kernels import last_backend, use_backend
from sae_kernels.launch import launch

# Adam's epsilon is large here, as a gradient that is all rounding error would else move its weight by a whole step
EPS = 1e-3
WIDTH, ROWS = 48, 12


def on_gpu(settings: dict[str, Any], **optim: Any) -> Trainer:
    with use_backend("gpu"):
        trainer = trainer_of(
            {"width": WIDTH, **settings}, steps=60, dead_after=1000, optim={"eps": EPS, **optim}, device=DEVICE
        )
    assert isinstance(trainer.route, FusedRoute)
    return trainer


def started(trainer: Trainer, batches: list[Pair]) -> Trainer:
    """With some latents dead from the start, and few enough firing for listed codes."""
    with use_backend("naive"):
        # from other rows: biases are fitted so that one of these has a pre-activation of zero, up to rounding
        initialise(trainer, planted(len(batches) + 4, rows=ROWS)[-4:], active=1.5)
    with torch.no_grad():
        if trainer.sparsity is None and trainer.model.code.name in ("jumprelu", "gated"):
            trainer.model.b_enc.sub_(2.5)
        trainer.model.dictionary.tokens_since_fired[::7] = 10**6
        trainer.model.b_enc[::7] -= 0.5
    return trainer


def stepped(settings: dict[str, Any], batches: list[Pair], **optim: Any) -> Trainer:
    """After a step of the fused route on each batch."""
    trainer = started(on_gpu(settings, **optim), batches)
    dense: list[int] = []
    assert isinstance(trainer.route, FusedRoute)
    note_dense_steps(trainer.route, dense)
    with use_backend("gpu"):
        run(trainer, batches)
    assert not dense, "these steps were to be fused"
    assert last_backend("fused_update") == "gpu"
    return trainer


def by_autograd(settings: dict[str, Any], batches: list[Pair], **optim: Any) -> Trainer:
    trainer = on_gpu(settings, **optim)
    use_autograd(trainer)
    with use_backend("naive"):
        return run(started(trainer, batches), batches)


def assert_same_steps(ours: Trainer, theirs: Trainer) -> None:
    """Weights, moments and what is logged."""
    state, other = ours.state()[0], theirs.state()[0]
    for key, tensor in state.items():
        if tensor.is_floating_point():
            assert relative(tensor.double(), other[key].double()) < 1e-4, key
    window, expected = ours.window(), theirs.window()
    assert window.parts == pytest.approx(expected.parts, rel=1e-4, abs=1e-6)
    for field in ("loss", "fvu", "l0", "grad_norm", "dead"):
        assert getattr(window, field) == pytest.approx(getattr(expected, field), rel=1e-4), field


def fused_on_gpu(settings: dict[str, Any]) -> bool:
    with use_backend("gpu"):
        return trainer_of(settings, steps=1).route.name == "fused"


FUSED = [name for name, settings in RECIPES.items() if fused_on_gpu(settings)]
PAIRS = ("skip_transcoder, gated", "transcoder, matryoshka", "crosscoder, temporal")
"""Of the bases of variants that have several, the interpreter tries these: it takes half a second a step."""
SEVERAL = ("transcoder, ", "skip_transcoder, ", "crosscoder, ")
EVERY_STEP = int(os.environ.get("SPARSIGHT_STEPS", "50" if torch.cuda.is_available() else "3"))
"""Steps that each variant takes; under the interpreter `SPARSIGHT_STEPS=50` takes minutes."""
TRIED = FUSED if torch.cuda.is_available() else [n for n in FUSED if n in PAIRS or not n.startswith(SEVERAL)]


@pytest.mark.parametrize("name", TRIED)
def test_steps_equal_the_autograd_route(name: str) -> None:
    # 24 go past the second look for dead latents
    batches = planted(max(24, EVERY_STEP) if name == "topk" else EVERY_STEP, rows=ROWS)
    # what is clipped, and by how much, is decided on the device
    clip = 0.02 if name == "gated" else 4.0
    ours, theirs = (take(RECIPES[name], batches, compute="float32", clip=clip) for take in (stepped, by_autograd))
    assert_same_steps(ours, theirs)


@pytest.mark.parametrize("name", ["topk", "jumprelu, wide", "skip_transcoder, gated"])
def test_steps_in_bfloat16_follow_those_in_float32(name: str) -> None:
    batches = planted(3, rows=ROWS)
    trainers = [stepped(RECIPES[name], batches, compute=compute) for compute in ("bfloat16", "float32")]
    assert {p.dtype for p in trainers[0].model.parameters()} == {torch.float32}
    assert trainers[0].route.copies.W_enc.dtype == torch.bfloat16  # type: ignore[union-attr]
    ours, exact = (trainer.window() for trainer in trainers)
    assert ours.loss == pytest.approx(exact.loss, rel=0.03)
    assert ours.loss != exact.loss


def test_copies_follow_weights_that_something_else_changes() -> None:
    batches = planted(3, rows=ROWS)
    trainer = stepped({}, batches[:1], compute="bfloat16")
    route = trainer.route
    assert isinstance(route, FusedRoute)
    with torch.no_grad():
        trainer.model.W_enc[5] = 7.0
        trainer.model.W_enc[6] *= 40.0
    with use_backend("gpu"):
        run(trainer, batches[1:2])
    assert route.copies is not None
    # the interpreter cuts the mantissa off where a GPU rounds it
    torch.testing.assert_close(route.copies.W_enc.float(), trainer.model.W_enc.detach(), rtol=2**-7, atol=0)
    assert route.copies.row_norms.max() == pytest.approx(trainer.model.W_enc.norm(dim=1).max().item(), rel=1e-5)


@contextlib.contextmanager
def counted_waits(counts: list[str]) -> Iterator[None]:
    """Note each time that the host asks a tensor for its values."""
    names = ("item", "tolist", "__bool__", "__float__", "__int__")
    plain = {name: getattr(torch.Tensor, name) for name in names}

    def counting(name: str) -> Any:
        def ask(tensor: torch.Tensor) -> Any:
            counts.append(name)
            return plain[name](tensor)

        return ask

    class Nonzero(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.name in ("aten::nonzero", "aten::masked_select"):
                counts.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    for name in names:
        setattr(torch.Tensor, name, counting(name))
    try:
        with Nonzero():
            yield
    finally:
        for name, method in plain.items():
            setattr(torch.Tensor, name, method)


@pytest.mark.parametrize(
    ("name", "waits"),
    [("topk", 0), ("skip_transcoder, topk", 0), ("matryoshka", 1), ("relu", 2)],
)
def test_host_waits_only_for_the_size_of_codes_that_vary_in_size(name: str, waits: int) -> None:
    batches = planted(2, rows=ROWS)
    trainer = stepped(RECIPES[name], batches[:1], compute="bfloat16")
    # the dead latents are listed every 20 steps, which is not this one; on a CPU the trainer checks every step
    trainer.raise_if_diverged = lambda: None  # type: ignore[method-assign]
    # on a CPU the code of a batch also keeps its threshold as a number
    counts: list[str] = []
    with use_backend("gpu"), counted_waits(counts):
        run(trainer, batches[1:])
    assert len(counts) == waits + (DEVICE == "cpu" and name == "matryoshka"), counts


@pytest.mark.parametrize("name", ["topk", "matryoshka"])
def test_a_step_that_is_not_finite_and_all_after_it_change_nothing(name: str) -> None:
    batches = planted(4, rows=ROWS)
    trainer = stepped(RECIPES[name], batches[:1])
    before, _ = trainer.state()
    trainer.raise_if_diverged, check = lambda: None, trainer.raise_if_diverged  # type: ignore[method-assign]
    batches[1].x[3, 5] = float("nan")
    with use_backend("gpu"):
        run(trainer, batches[1:])
    after, _ = trainer.state()
    for key, tensor in before.items():
        if key.startswith(("model.", "optimizer.")):
            assert tensor.equal(after[key]), key
    with pytest.raises(DivergedError, match="step 4: the variance of the inputs is not finite"):
        check()


def test_a_run_that_is_restored_continues_with_equal_bits() -> None:
    batches = planted(4, rows=ROWS)
    # the interpreter cuts the mantissa of a copy off, where torch rounds it
    compute = "float32" if DEVICE == "cpu" else "bfloat16"
    whole, again = stepped({}, batches[:2], compute=compute), on_gpu({}, compute=compute)
    again.restore(*whole.state())
    for trainer in (whole, again):
        with use_backend("gpu"):
            run(trainer, batches[2:])
    state, other = (trainer.state()[0] for trainer in (whole, again))
    assert all(tensor.equal(other[key]) for key, tensor in state.items())


def frozen(function: Any) -> Any:
    """Stands in for a CUDA graph where there is none: the captured step again, with the arguments that it had then."""
    return function


def on_device(batches: list[Pair]) -> list[Pair]:
    return [Pair(*(tensor.to(DEVICE) for tensor in batch)) for batch in batches]


@pytest.mark.parametrize(
    ("name", "optim"),
    [
        ("topk", {"weights": "bfloat16", "moments": "int8"}),
        ("skip_transcoder, topk", {"moments": "bfloat16", "compute": "bfloat16"}),
    ],
)
def test_captured_steps_give_the_bits_of_eager_ones(name: str, optim: dict[str, Any]) -> None:
    batches = on_device(planted(8, rows=ROWS))
    optim = {"compute": "float32", "warmup": 0.5, **optim}
    eager, captured = (started(on_gpu(RECIPES[name], **optim, graphs="off"), batches) for _ in range(2))
    captured.graph = graph = StepGraph(required=True, capture=None if DEVICE == "cuda" else frozen)
    with use_backend("gpu"):
        for trainer in (eager, captured):
            run(trainer, batches[:4])
            # as if a latent had fired again: other shapes, and so another graph
            assert trainer.dead.numel() > 1
            trainer.dead = trainer.dead[1:]
            run(trainer, batches[4:6])
            # from here on the host never waits
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                run(trainer, batches[6:])
            finally:
                if DEVICE == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
    assert (graph.captures, graph.replays) == (2, 5)
    state, other = (trainer.state()[0] for trainer in (eager, captured))
    assert all(tensor.equal(other[key]) for key, tensor in state.items())
    assert eager.window() == captured.window()


WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2")


class Recorded(TorchDispatchMode):
    """Every operation and launch of a step: what it allocates, and the numbers that a graph would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Any] = []
        self.launching = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.launching:
            name = func._schema.name.removeprefix("aten::")
            assert name not in WAITING, f"{name} makes the host wait"
            leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if not isinstance(leaf, torch.Tensor)]
            shapes = [(t.shape, t.dtype) for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
            self.entries.append((name, shapes, [repr(leaf) for leaf in leaves]))
        return result

    def launch(self, kernel: Any, grid: Any, arguments: Any, constants: Any, **more: Any) -> None:
        numbers = {name: value for name, value in arguments.items() if not isinstance(value, torch.Tensor)}
        self.entries.append((kernel.__name__, grid, numbers, dict(constants), more))
        self.launching = True
        try:
            launch(kernel, grid, arguments, constants, **more)
        finally:
            self.launching = False


def test_a_step_that_is_captured_depends_on_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = on_device(planted(4, rows=ROWS))
    trainer = stepped(
        RECIPES["skip_transcoder, topk"], batches[:2], compute="bfloat16", moments="int8", warmup=0.5, graphs="off"
    )
    trainer.raise_if_diverged = lambda: None  # type: ignore[method-assign]
    records = [Recorded(), Recorded()]
    compute = trainer._compute
    for record, batch in zip(records, batches[2:], strict=True):
        for module in [m for n, m in sys.modules.items() if n.startswith("sae_kernels.") and hasattr(m, "launch")]:
            if module.__name__ != "sae_kernels.launch":
                monkeypatch.setattr(module, "launch", record.launch)

        def recording(*arguments: Any, record: Recorded = record) -> Any:
            with record:
                return compute(*arguments)

        trainer._compute = recording  # type: ignore[method-assign]
        with use_backend("gpu"):
            run(trainer, [batch])
    assert len(records[0].entries) > 50
    assert records[0].entries == records[1].entries


def test_graphs_are_refused_where_nothing_can_be_captured() -> None:
    for settings, message in (({"variant": "relu"}, "codes"), ({}, "there is no GPU")):
        if DEVICE == "cuda" and not settings:
            continue
        with pytest.raises(ConfigError, match=f"--graphs on: .*{message if DEVICE == 'cuda' else 'there is no GPU'}"):
            on_gpu(settings, graphs="on")
    assert on_gpu({"variant": "batchtopk"}).graph is None
    assert (on_gpu({}).graph is not None) == (DEVICE == "cuda")
