"""Schedules of a run: the learning rate, and the number of active latents."""

from __future__ import annotations

SIGN_RATE, MUON_RATE = 5e-3, 2e-3
"""Peak rates of sign descent at 16384 latents (it scales as Adam's does) and of Muon (it does not)."""


def default_peak(width: int, steps: int, optimizer: str = "adam") -> float:
    """Peak learning rate for a dictionary of `width` latents trained for `steps` steps.

    The published rule, 2e-4 / sqrt(F / 16384) (Gao et al. 2024, figure 3), is for runs of hundreds of thousands of
    steps; short runs need more. Fitted on layer 9 of the demo model, k = 32, batches of 2048: of factors 2.5 to 30, the
    best held-out FVU with under 1% dead latents was at 7 to 10 for 100 to 2,300 steps (F = 1024 and 4608; from 10 on,
    latents die). So the factor is 7 up to 1,500 steps, and falls as steps^-0.42 to the published rule at 150,000; that
    fall joins two known ends and is not itself measured.
    """
    if optimizer == "muon":
        return MUON_RATE
    if optimizer == "signsgd":
        return SIGN_RATE / (width / 16384) ** 0.5
    factor = min(7.0, max(1.0, 7.0 * (1500 / max(steps, 1)) ** 0.42))
    return factor * 2e-4 / (width / 16384) ** 0.5


def course(step: int, steps: int, *, warmup: float, decay: float) -> float:
    """Share of the peak rate at `step` (counted from 0) of `steps`.

    Rises linearly over the first `warmup` share of the steps (at most 1000), stays at the peak, and falls linearly to
    zero over the last `decay` share.
    """
    rising = min(round(warmup * steps), 1000)
    falling = round(decay * steps)
    up = (step + 1) / (rising + 1) if step < rising else 1.0
    down = (steps - step) / (falling + 1) if step >= steps - falling else 1.0
    return min(up, down)


def annealed(step: int, steps: int, start: int, end: int, share: float) -> int:
    """Latents kept at `step` of `steps`: falls linearly from `start` to `end` over the first `share` of the steps."""
    done = min(1.0, step / max(1, round(share * (steps - 1))))
    return round(start + (end - start) * done)
