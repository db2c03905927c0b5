"""What every generative model offers, and what their training shares: batches and a start by seed alone.

model = train_gan(x, stem, head, GANConfig(), seed=0)
pixels = model.sample(64, torch.Generator().manual_seed(0))     # [64, D]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sae.base import draws
from sae.config import ConfigError

BATCHES, NOISE, MAKER, CRITIC, LAYERS = range(5)  # what random draws are for: each use has its own
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Sampler(Protocol):
    """A trained generative model."""

    @property
    def evaluations(self) -> int:
        """Times that a network is called for one sample."""
        ...

    @property
    def parameters(self) -> int:
        """Trained numbers that sampling uses."""
        ...

    @property
    def seconds(self) -> float:
        """Wall time of training, that of all its parts."""
        ...

    @property
    def encodes(self) -> bool:
        """Whether it has an encoder, so that a given image has a latent code."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        ...


def minibatches(x: Tensor, *, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Rows [batch, D] of x [N, D] for every step, each row once an epoch, and the generator of the step's own noise.

    What does not fill a batch is left out of the epoch.

    Raises:
        ConfigError: fewer rows than a batch.
    """
    per_epoch = len(x) // batch
    if not per_epoch:
        raise ConfigError(f"--batch {batch}: expected at most {len(x)}, the number of training rows")
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(x), generator=draws.generator(seed, epoch, BATCHES))
        yield x[order[place * batch : (place + 1) * batch]], draws.generator(seed, step, NOISE)


def seeded(make: Callable[[], AnyModule], *key: int) -> AnyModule:
    """The module that `make` gives, its start drawn from the key alone; PyTorch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.generator(*key).initial_seed())
        return make()


def count(*modules: nn.Module) -> int:
    """Numbers in the modules' parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all the optimizer's parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
