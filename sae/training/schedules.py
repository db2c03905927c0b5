"""Learning rates: the default peak and its course over a run."""

from __future__ import annotations


def default_peak(width: int, steps: int) -> float:
    """Peak learning rate for a dictionary of `width` latents trained for `steps` steps.

    The published rule 2e-4 / sqrt(F / 16384) (Gao et al. 2024, figure 3) is for runs of hundreds of thousands of steps.
    """
    return 2e-4 / (width / 16384) ** 0.5 * 10


def course(step: int, steps: int, *, warmup: float, decay: float) -> float:
    """Share of the peak rate at `step` (counted from 0) of `steps`.

    Rises linearly over the first `warmup` share of the steps (at most 1000), stays, and falls linearly to zero over the
    last `decay` share.
    """
    rising = min(round(warmup * steps), 1000)
    falling = round(decay * steps)
    up = (step + 1) / (rising + 1) if step < rising else 1.0
    down = (steps - step) / (falling + 1) if step >= steps - falling else 1.0
    return min(up, down)
