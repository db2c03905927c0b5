"""What generative models share: how they are sampled, batches, an optimiser, and a start that depends only on a seed.

model = train_gan(x, stem, head, GANConfig(), seed=0)
pixels = model.sample(64, torch.Generator().manual_seed(0))     # [64, D]
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from sae.base import draws
from sae.config import ConfigError, check
from sae.training.schedules import course

BATCHES, NOISE, MAKER, CRITIC, LAYERS = range(5)  # keys of the random streams, one a purpose
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampler(ABC):
    """A trained generative model."""

    seconds: float
    """Wall time of training all of its parts."""
    parameters: int
    """Trained numbers that sampling uses."""
    evaluations: int = 1
    """Network calls for one sample."""
    encodes: bool = False
    """Whether it has an encoder, so that a given image has a latent code."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """How long a model is trained, by Adam."""

    steps: int = 2000
    batch: int = 64
    lr: float = 5e-4

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(self.lr > 0, "lr", self.lr, "more than 0")


def minibatches(x: Tensor, config: StepsConfig, *, seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Rows [batch, D] of x [N, D] for every step, each row once an epoch, and a generator for the step's noise.

    Rows that do not fill a batch are left out of the epoch.

    Raises:
        ConfigError: fewer rows than a batch.
    """
    per_epoch = len(x) // config.batch
    if not per_epoch:
        raise ConfigError(f"--batch {config.batch}: expected at most {len(x)}, the number of training rows")
    order = torch.empty(0, dtype=torch.int64)
    for step in range(config.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(x), generator=draws.generator(seed, epoch, BATCHES))
        yield x[order[place * config.batch : (place + 1) * config.batch]], draws.generator(seed, step, NOISE)


def fit(network: nn.Module, losses: Iterable[Tensor], config: StepsConfig, *, clip: float | None = None) -> float:
    """Minimise one loss a step by Adam, whose rate falls to zero over the second half of the steps.

    Args:
        network: the module to train.
        losses: scalars, each computed when it is asked for.
        config: the settings.
        clip: norm to which gradients are cut.

    Returns:
        Seconds of training.
    """
    begun = time.perf_counter()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    for step, loss in enumerate(losses):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * course(step, config.steps, warmup=0.05, decay=0.5)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return time.perf_counter() - begun


def seeded(make: Callable[[], AnyModule], *key: int) -> AnyModule:
    """The module from `make`, initialised from the key alone; PyTorch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.generator(*key).initial_seed())
        return make()


def count(*modules: nn.Module) -> int:
    """Numbers in the modules' parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())
