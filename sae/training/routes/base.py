"""What both routes take and return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term
from sae_kernels import SparseCodes


class StepContext(NamedTuple):
    """What changes from step to step, besides the data."""

    step: int
    """Counted from 1."""
    lr: float
    terms: Sequence[Term]
    """The loss, with its weights at this step."""
    dead: Tensor
    """The dead latents, int64 [n_dead]."""
    allowed: Tensor
    """0-dim bool; where it is false the step changes nothing."""
    power: float = 1.0
    """p of a penalty Σ f^p."""
    adjacent: Tensor | None = None
    """Whether rows 2i and 2i + 1 are neighbouring tokens of a document, bool [N / 2]; None where rows are shuffled."""
    generator: torch.Generator | None = None
    """Random numbers for a stochastic code."""
    corrupted: Tensor | None = None
    """Which dimensions of the inputs were corrupted, bool [N, d]; None where none were."""
    progress: float = 1.0
    """Share of the run's steps that are done."""
    running: Tensor | None = None
    """Running mean of every latent's value [F], where the recipe keeps one."""


class StepOutcome(NamedTuple):
    """What one step computed; 0-dim tensors stay on the device."""

    codes: SparseCodes
    embedded: Tensor
    """What the encoder read [N P, d], detached."""
    error: Tensor
    """Squared error of every sample [N]."""
    loss: Tensor
    parts: dict[str, Tensor]
    """Each term's mean, unweighted."""
    grad_norm: Tensor
    """Global norm of all gradients before clipping."""


class Route(Protocol):
    """One way to step."""

    name: str

    def begin(self, now: StepContext) -> None:
        """Before `take`, bring what changes with the step and not with the batch to the device."""
        ...

    def take(self, x: Tensor, target: Tensor, now: StepContext) -> StepOutcome:
        """One step on normalised x [N, d] and target [N, d_out], in place on weights and optimizer.

        A step whose loss or gradient is not finite changes nothing.
        """
        ...


def largest_norm(config: OptimConfig, model: Autoencoder) -> float | None:
    """The global gradient norm to clip to; None for no clipping.

    In units of d, because on inputs with mean ||x||² = d the gradient of an untrained dictionary has a norm below 2 d
    (by Cauchy and Schwarz, ||2/N Σ f e|| <= 2 d): a limit of some d stops explosions and nothing else.
    """
    return config.clip * model.dim if config.clip else None
