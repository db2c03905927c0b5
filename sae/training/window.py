"""What training reports every few steps, and the error that ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DivergedError(ArithmeticError):
    """A loss or gradient was not finite; weights and optimizer are as before that step."""

    def __init__(self, step: int, culprit: str) -> None:
        super().__init__(
            f"step {step}: {culprit} is not finite; the step was not taken. Try a lower --lr, or --compute float32"
        )
        self.step = step


class Window(NamedTuple):
    """Means over the steps since the last report."""

    loss: float
    """The weighted sum of all terms."""
    parts: dict[str, float]
    """Each term, unweighted."""
    fvu: float
    """Squared error over the variance around each batch's mean, summed over the window."""
    l0: float
    """Non-zero codes a token."""
    grad_norm: float
    """Global gradient norm before clipping."""
    dead: float
    """Share of latents that are dead now."""
    sparsity: float | None
    """Weight of the penalty, for variants that have one."""

    @classmethod
    def of(cls, sums: Mapping[str, float], steps: int, *, dead: float) -> Window:
        """From sums over steps: loss, error, variance, l0, grad_norm, one `part.NAME` a term, and sparsity if any."""
        # sorted: sums that come from a checkpoint have another order
        terms = sorted(name for name in sums if name.startswith("part."))
        return cls(
            loss=sums["loss"] / steps,
            parts={name.removeprefix("part."): sums[name] / steps for name in terms},
            fvu=sums["error"] / sums["variance"],
            l0=sums["l0"] / steps,
            grad_norm=sums["grad_norm"] / steps,
            dead=dead,
            sparsity=sums["sparsity"] / steps if "sparsity" in sums else None,
        )


class WindowSums:
    """Sums over the steps since the last report, on the training device; only `raise_if_diverged` and `means` wait.

    Args:
        terms: names of the loss terms.
        device: of the training.
    """

    def __init__(self, terms: Sequence[str], device: torch.device) -> None:
        self._checked = ["the variance of the inputs", *(f"loss term {name}" for name in terms), "the gradient"]
        self.checks = torch.zeros(len(self._checked), device=device)
        """Variance, loss terms and gradient norm of the newest step, or of the first that was not finite."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def finite(self) -> Tensor:
        """Whether all steps so far were finite, bool []."""
        return torch.isfinite(self.checks).all()

    def check(self, variance: Tensor, parts: Mapping[str, Tensor], gradient_norm: Tensor) -> Tensor:
        """Keep what a step is checked by, unless an earlier one was not finite; returns `finite`."""
        checks = torch.stack([variance, *parts.values(), gradient_norm]).float()
        self.checks.copy_(torch.where(self.finite(), checks, self.checks))
        return self.finite()

    def add(self, values: Mapping[str, Tensor], finite: Tensor) -> None:
        """Add a step's values, by the names of `Window.of`; zeros where not `finite`, bool []."""
        # a checkpoint holds these sums: on a GPU, where a step that is not finite is noticed later, they leave it out
        for name, value in values.items():
            value = torch.where(finite, value, torch.zeros_like(value))
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value

    def raise_if_diverged(self, step: int) -> None:
        """Raise DivergedError if a step was not finite; names the input, the loss term or the gradient."""
        finite = torch.isfinite(self.checks)
        if not finite.all():
            raise DivergedError(step, self._checked[int((~finite).nonzero()[0])])

    def means(self, *, dead: float) -> Window:
        """Means over the steps since the last call; `dead` is the share of dead latents now."""
        sums = {name: value.item() for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        steps, self.steps = self.steps, 0
        return Window.of(sums, steps, dead=dead)
