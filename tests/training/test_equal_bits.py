"""Two equal runs end with the same bits, on several threads too, whatever the variant; so does a resumed one.

Shapes lie above what makes PyTorch and the kernels start threads (32,768 elements): entries of the codes, weights,
inputs. Threads that add in the order in which they arrive would show in the last bits of some weight or moment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import DIM, RECIPES, initialise, planted, run, trainer_of
from torch import Tensor

from sae.config import OptimConfig, VisionConfig
from sae.models.language import VARIANTS
from sae.models.vision import NAMES, OWN, recipe_of
from sae.training.trainer import Trainer

PARALLEL = 32_768  # elements from which PyTorch starts threads
STEPS, ROWS, WIDTH, K = 4, 2304, 1536, 16
IMAGES, SHAPE = 320, (1, 16, 16)
CONVOLUTIONAL: dict[str, Any] = {"stem": "convolutional", "head": "convolutional", "channels": (8, 16)}
SPECIAL: dict[str, dict[str, Any]] = {
    "codebook by gradient": {"variant": "vqvae", "momentum": 0.0},
    "corrupted pixels alone": {"variant": "denoising", "corruption": "masking", "corrupted_only": True},
    "running rate": {"variant": "kl_sparse", "rate_momentum": 0.9},
    "free bits": {"variant": "vae", "free_bits": 0.05},
    "transposed convolutions": {"variant": "vae", **CONVOLUTIONAL, "upsampling": False},
}
IMAGE_ROWS: dict[str, dict[str, Any]] = {
    **{name: {"variant": name} for name in NAMES},
    **{
        f"{name}, convolutional": {"variant": name, **CONVOLUTIONAL}
        for name in ("ae", "kl_sparse", "vae", "relu", "topk", "batchtopk", "jumprelu")
    },
    **SPECIAL,
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "signsgd": ({}, {"optimizer": "signsgd"}),
    "muon": ({}, {"optimizer": "muon"}),
    "bfloat16": ({"variant": "gated"}, {"compute": "bfloat16"}),
    "layer_norm": ({"variant": "jumprelu", "bandwidth": 0.2, "normalise": "layer_norm"}, {}),
    "whiten": ({"normalise": "whiten"}, {}),
    "resample": ({"variant": "relu", "revival": "resample"}, {}),
    "pre_activation": ({"variant": "jumprelu", "bandwidth": 0.2, "revival": "pre_activation"}, {}),
}
"""Settings of the autoencoder and the optimizer that take other ways through a step."""
SAMPLE = ["topk", "gated", "jumprelu, anthropic", "crosscoder, p_anneal", "vae, convolutional", "vqvae2"]
"""What is tried under other instruction sets as well."""
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Keeps PyTorch and its libraries to AVX2 on a processor with AVX-512."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def assert_equal_runs(
    make: Callable[[], Trainer], begin: Callable[[Trainer], object], step: Callable[[Trainer, int], object]
) -> None:
    """Four steps, twice, and once by a new trainer that takes over the state in the middle."""
    first, again, resumed = make(), make(), make()
    begin(first)
    begin(again)
    for i in range(STEPS):
        if i == STEPS // 2:
            resumed.restore(*again.state())
        for trainer in (first, again) if i < STEPS // 2 else (first, again, resumed):
            step(trainer, i)
    for other in (again, resumed):
        assert_same(other.state()[0], first.state()[0])
        assert_same(other.finished().state_dict(), first.finished().state_dict())
    assert again.window() == first.window()


def assert_same(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert tensors.keys() == others.keys()
    differing = [name for name, tensor in tensors.items() if not tensor.equal(others[name])]
    assert not differing


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_and_recipe(name: str) -> None:
    batches = planted(STEPS, rows=ROWS)
    assert min(ROWS * K, ROWS * DIM, WIDTH * DIM) > PARALLEL
    assert_equal_runs(
        # dead after two batches: auxiliary terms and resampling have something to do
        lambda: trainer_of({"width": WIDTH, "k": K, **RECIPES[name]}, steps=STEPS, dead_after=ROWS),
        lambda trainer: initialise(trainer, batches),
        lambda trainer, i: run(trainer, batches[i : i + 1]),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_every_other_way_through_a_step(name: str) -> None:
    settings, optim = OPTIONS[name]
    batches = planted(STEPS, rows=ROWS)
    assert_equal_runs(
        lambda: trainer_of({"width": WIDTH, "k": K, **settings}, steps=STEPS, dead_after=ROWS, optim=optim),
        lambda trainer: initialise(trainer, batches),
        lambda trainer, i: run(trainer, batches[i : i + 1]),
    )


@pytest.mark.parametrize("name", IMAGE_ROWS)
def test_every_image_variant(name: str) -> None:
    config = VisionConfig(**{"width": 48, "k": 12, "hidden": (192,), "code_dim": 16, **IMAGE_ROWS[name]})
    draw = torch.Generator().manual_seed(0)
    images = [torch.rand(IMAGES, 256, generator=draw) ** 2 for _ in range(STEPS)]
    assert IMAGES * 256 > PARALLEL
    assert_equal_runs(
        lambda: Trainer(
            recipe_of(config, SHAPE, 1000), OptimConfig(), steps=STEPS, dead_after=2 * IMAGES, auxk=8,
            device=torch.device("cpu"), seed=0,
        ),
        lambda trainer: trainer.initialise(images[:2], images[:2]),
        lambda trainer, i: trainer.step(images[i], images[i]),
    )  # fmt: skip


def test_nothing_of_the_tables_is_left_out() -> None:
    assert {settings["variant"] for settings in RECIPES.values()} == set(VARIANTS)
    assert {settings["variant"] for settings in IMAGE_ROWS.values()} == set(NAMES) >= set(OWN)


def test_with_narrower_vectors_too() -> None:
    """The same tests as on a processor without AVX-512, on one that has it."""
    if os.environ.get("ATEN_CPU_CAPABILITY") == AVX2["ATEN_CPU_CAPABILITY"]:
        assert torch.backends.cpu.get_cpu_capability() == "AVX2"
        return
    tests = [*selected(), test_with_narrower_vectors_too.__name__]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *(f"{__file__}::{test}" for test in tests)],
        cwd=Path(__file__).parents[2], env={**os.environ, **AVX2}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{len(tests)} passed" in done.stdout


def selected() -> list[str]:
    """Node ids of the sample."""
    return [f"test_every_{'variant_and_recipe' if n in RECIPES else 'image_variant'}[{n}]" for n in SAMPLE]
