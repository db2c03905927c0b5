"""What training reports every few steps, and the error that ends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


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
