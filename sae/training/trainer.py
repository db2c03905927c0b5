"""The trainer: one autoencoder, one optimizer, one step. It does not know where its batches come from.

trainer = Trainer(model, terms, optim, steps=steps, dead_after=..., auxk=..., device=device)
trainer.initialise(first_inputs, seed=0)
for batch in batches.iterate(None):
    trainer.step(batch.input, batch.target)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.training.routes import Moments, Rate, Taken, choose_route
from sae.training.schedules import course, default_peak

DEAD_REFRESH = 20  # steps between two looks at which latents are dead: each look makes the host wait for the device


PROBE_ROWS = 256  # inputs kept for the saved autoencoder's self-test


class DivergedError(ArithmeticError):
    """A loss or gradient stopped being finite; weights and optimizer are as they were before that step."""

    def __init__(self, step: int, culprit: str) -> None:
        super().__init__(
            f"step {step}: {culprit} is not finite; the step was not taken. Try a lower --lr, or --compute float32"
        )
        self.step = step


class Window(NamedTuple):
    """Means over the steps since the last report."""

    loss: float
    """The whole loss."""
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


class Trainer:
    """Steps an autoencoder in scaled units: inputs are multiplied by `scale`, so that mean ||x||² = d.

    Master weights and moments are float32. On a GPU nothing in a step makes the host wait for the device, but for a
    look at the dead latents every 20 steps; a step that is not finite, and all after it, change nothing there.
    """

    def __init__(
        self,
        model: Autoencoder,
        terms: Mapping[str, float],
        config: OptimConfig,
        *,
        steps: int,
        dead_after: int,
        auxk: int,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.terms, self.config, self.steps, self.device = terms, config, steps, device
        self.dead_after, self.auxk = dead_after, auxk
        self.peak = config.lr or default_peak(model.width, steps)
        compute = config.compute if config.compute != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
        self.compute = getattr(torch, compute)
        self.scale = 1.0
        self.taken = 0
        self.dead = torch.zeros(0, dtype=torch.int64, device=device)
        self.probe = torch.zeros(0, model.dim)
        self.moments = Moments.zeros(model)
        self.route = choose_route(model, self.moments, terms, config, auxk, self.compute)
        # variance, loss terms and gradient norm of the newest step, or of the first that was not finite
        self._checks = torch.zeros(len(terms) + 2, device=device)
        self._window: dict[str, Tensor] = {}
        self._window_steps = 0

    @torch.no_grad()
    def initialise(self, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, seed: int) -> None:
        """Weights from the seed; scale and pre-bias from the first batches (geometric median of the targets)."""
        self.model.initialise(torch.Generator().manual_seed(seed))
        x = torch.cat([batch.to(self.device).float() for batch in inputs])
        self.scale = (x.shape[1] / x.pow(2).sum(1).mean()).sqrt().item()
        self.probe = x[:PROBE_ROWS].cpu()
        y = torch.cat([batch.to(self.device).float() for batch in targets])
        self.model.dictionary.b.copy_(geometric_median(y * self.scale))

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One step on inputs [N, d] and targets [N, d_out] in any float precision and on any device.

        Raises:
            DivergedError: the loss or a gradient was not finite (on a GPU noticed at the next `window`).
        """
        x = inputs.to(self.device, non_blocking=True).float() * self.scale
        target = x if targets is inputs else targets.to(self.device, non_blocking=True).float() * self.scale
        if self.taken % DEAD_REFRESH == 0:
            self.dead = self.model.dictionary.dead(self.dead_after).nonzero().squeeze(1)
        lr = self.peak * course(self.taken, self.steps, warmup=self.config.warmup, decay=self.config.decay)
        allowed = torch.isfinite(self._checks).all()
        taken = self.route.take(x, target, self.dead, Rate(self.taken + 1, lr), allowed)
        self._note(taken, target)
        if self.device.type == "cpu":
            self.raise_if_diverged()
        self.taken += 1

    @torch.no_grad()
    def _note(self, taken: Taken, target: Tensor) -> None:
        """Add the step to the window, and keep the first step's checks that are not finite; no synchronisation."""
        variance = (target - target.mean(0)).square().sum()
        checks = torch.stack([variance, *taken.parts.values(), taken.grad_norm]).float()
        self._checks = torch.where(torch.isfinite(self._checks).all(), checks, self._checks)
        dictionary = self.model.dictionary
        before = dictionary.tokens_since_fired.clone()
        dictionary.note_fired(taken.codes)
        good = torch.isfinite(self._checks).all()
        dictionary.tokens_since_fired.copy_(torch.where(good, dictionary.tokens_since_fired, before))
        news = {
            "loss": taken.loss,
            "error": taken.error.sum(),
            "variance": variance,
            "l0": (taken.codes.values != 0).sum() / taken.codes.tokens,
            "grad_norm": taken.grad_norm,
            **{f"part.{name}": value for name, value in taken.parts.items()},
        }
        self._window = {name: self._window.get(name, 0) + value for name, value in news.items()}
        self._window_steps += 1

    def raise_if_diverged(self) -> None:
        """Raise DivergedError if some step was not finite; names the input, the loss term or the gradient."""
        if torch.isfinite(self._checks).all():
            return
        names = ["the variance of the inputs", *(f"loss term {name}" for name in self.terms), "the gradient"]
        culprit = names[int((~torch.isfinite(self._checks)).nonzero()[0])]
        raise DivergedError(self.taken, culprit)

    def window(self) -> Window:
        """Means over the steps since the last call; the one place where the host waits for the device."""
        self.raise_if_diverged()
        n = self._window_steps
        sums = {name: value.item() for name, value in self._window.items()}
        self._window, self._window_steps = {}, 0
        return Window(
            loss=sums["loss"] / n,
            parts={name[5:]: value / n for name, value in sums.items() if name.startswith("part.")},
            fvu=sums["error"] / sums["variance"],
            l0=sums["l0"] / n,
            grad_norm=sums["grad_norm"] / n,
            dead=self.model.dictionary.dead(self.dead_after).float().mean().item(),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later process needs to go on bit-identically: tensors, and JSON values."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for kind, moments in self.moments._asdict().items():
            tensors |= {f"{kind}.{name}": t for name, t in moments.items()}
        tensors["dead"], tensors["probe"] = self.dead, self.probe
        return {name: t.cpu().contiguous() for name, t in tensors.items()}, {"taken": self.taken, "scale": self.scale}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
        for kind, moments in self.moments._asdict().items():
            for name, moment in moments.items():
                moment.copy_(tensors[f"{kind}.{name}"])
        self.dead, self.probe = tensors["dead"].to(self.device), tensors["probe"]
        self.taken, self.scale = values["taken"], values["scale"]


def geometric_median(points: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to `points` [n, d], by Weiszfeld's iteration (Weiszfeld 1937)."""
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-8)
        moved = (weights @ points) / weights.sum()
        if (moved - median).norm() <= tolerance * moved.norm():
            return moved
        median = moved
    return median
