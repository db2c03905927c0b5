"""The weight of a sparsity penalty over a run: fixed after a warm-up, or controlled until L0 reaches its target.

sparsity = Sparsity("l1", steps=10_000, warmup=0.3, target=32.0, fixed=None, device=device)
weight = sparsity.weight()          # 0-dim, on the device: nothing here makes the host wait
sparsity.observe(codes)             # after the step
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae.modules.sums import total
from sae_kernels import SparseCodes

START = 0.1
"""The controller's first weight: a weak penalty for inputs with mean ||x||² = d."""
P_START, P_END, P_CHANGES = 1.0, 0.2, 30
"""p-annealing: first and last p, and the number of changes over the second third of the run."""
MEMORY = 0.9  # of the running L0 that the controller reads
WIDEST = 9.0  # bound of log(weight / START): if no weight in that range reaches the aim, none outside would
LARGEST_ERROR = 1.0  # bound of log(L0 / aim), so that the first steps do not wind up the integral


class Sparsity:
    """The weight of one penalty.

    It is set by a proportional-integral controller on logarithms: log weight = P e + I Σ e with e = log(L0 / aim), L0 a
    running mean over about ten steps. The aim falls geometrically from the first step's L0 to the target over the
    warm-up. `power` is p of a penalty Σ f^p; at each change of p the weight is rescaled so that the penalty of the
    batch stays the same (Karvonen et al. 2024, section 3).

    `pace` is the learning rate over the default one: at a lower rate L0 follows the weight more slowly, and so must
    the integral.
    """

    def __init__(
        self,
        penalty: str,
        *,
        steps: int,
        warmup: float,
        target: float | None,
        fixed: float | None,
        device: torch.device,
        pace: float = 1.0,
    ) -> None:
        self.penalty, self.steps, self.target, self.fixed = penalty, steps, target, fixed
        # a batch may lie on several ranks, in equal parts
        self.over_ranks: Callable[[Tensor], Tensor] = lambda values: values
        self.shares = 1
        self.rising = max(1, round(warmup * steps))
        # a run of any length must have time for some tens of corrections
        self.proportional = 1.0
        self.integral = min(0.15, 45.0 / max(steps, 1)) * min(1.0, pace)
        self.taken = 0
        self.power = P_START
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.values = {"l0": zero.clone(), "first": zero.clone(), "sum": zero + math.log(START), "scale": zero + 1.0}

    def weight(self) -> Tensor:
        """The penalty's weight at this step, 0-dim float32."""
        if self.fixed is not None:
            rising = min(1.0, (self.taken + 1) / self.rising)
            return (self.values["scale"] * self.fixed * rising).float()
        return (self.values["scale"] * (self.values["sum"] + self.proportional * self._error()).exp()).float()

    @torch.no_grad()
    def observe(self, codes: SparseCodes) -> None:
        """Update the running L0 and the controller with a step's codes."""
        l0 = self.over_ranks((codes.values != 0).sum().double()) / (self.shares * codes.tokens)
        if self.taken == 0:
            self.values["first"], self.values["l0"] = l0.clamp_min(1e-3), l0
        else:
            self.values["l0"] = MEMORY * self.values["l0"] + (1 - MEMORY) * l0
        if self.fixed is None:
            moved = self.values["sum"] + self.integral * self._error()
            self.values["sum"] = moved.clamp(math.log(START) - WIDEST, math.log(START) + WIDEST)
        self.taken += 1
        if self.penalty == "lp" and (power := self._power_at(self.taken)) != self.power:
            positive = codes.values[codes.values > 0].double()
            before, after = (self.over_ranks(total(positive.pow(p))) for p in (self.power, power))
            ratio = torch.where(after > 0, before / after, torch.ones_like(after))
            self.values["scale"] = self.values["scale"] * ratio
            self.power = power

    def _error(self) -> Tensor:
        """log(L0 / aim), bounded; zero before the first step."""
        if self.taken == 0 or self.target is None:
            return torch.zeros_like(self.values["l0"])
        done = min(1.0, self.taken / self.rising)
        aim = self.values["first"].log() * (1 - done) + math.log(self.target) * done
        aim = torch.minimum(aim, torch.maximum(self.values["first"].log(), torch.full_like(aim, math.log(self.target))))
        return (self.values["l0"].clamp_min(1e-3).log() - aim).clamp(-LARGEST_ERROR, LARGEST_ERROR)

    def _power_at(self, step: int) -> float:
        share = min(1.0, max(0.0, (3 * step / self.steps - 1)))
        return P_START + (P_END - P_START) * round(share * P_CHANGES) / P_CHANGES

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `restore` continues bit-identically."""
        return dict(self.values), {"taken": self.taken, "power": self.power}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.values = {name: tensors[name].to(t.device) for name, t in self.values.items()}
        self.taken, self.power = values["taken"], values["power"]
