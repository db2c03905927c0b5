"""Two ways to take one optimizer step, with one result.

- `AutogradRoute`: any code, any loss terms, any precision; whole gradients, then `adam_step` on each parameter.
- `FusedRoute`: squared error (and AuxK) on a sparse code with Adam, in float32: one latent-major sweep makes the
  gradients and updates the weights, and no F x d gradient is ever written (see `sae_kernels.fused_step`).

`choose_route` picks; the run's log says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Step, auxk, total_loss
from sae_kernels import (
    Parameters,
    RowGradients,
    SparseCodes,
    Workspace,
    adam_step,
    clip_scale,
    fused_forward,
    fused_update,
)


class Rate(NamedTuple):
    """Where a step stands in its schedule."""

    step: int
    """Counted from 1."""
    lr: float


class Taken(NamedTuple):
    """What one step computed; 0-dim tensors stay on the device."""

    codes: SparseCodes
    error: Tensor
    """Squared error of every token [N]."""
    loss: Tensor
    parts: dict[str, Tensor]
    """Each term's mean, unweighted."""
    grad_norm: Tensor
    """Global norm before clipping."""


class Route(Protocol):
    """One way to step."""

    name: str

    def take(self, x: Tensor, target: Tensor, dead: Tensor, rate: Rate, allowed: Tensor) -> Taken:
        """One step on x [N, d], target [N, d_out], in place on weights and moments.

        A step whose loss or gradient is not finite changes nothing; nor does any step where `allowed` (0-dim bool) is
        false. `dead` lists the dead latents.
        """
        ...


class Moments(NamedTuple):
    """Adam's state: parameter name -> tensor of the parameter's shape, float32."""

    m: dict[str, Tensor]
    v: dict[str, Tensor]

    @classmethod
    def zeros(cls, model: Autoencoder) -> Moments:
        """Before the first step."""
        named = dict(model.named_parameters())
        return cls(*({name: torch.zeros_like(p) for name, p in named.items()} for _ in range(2)))


def choose_route(
    model: Autoencoder,
    moments: Moments,
    terms: Mapping[str, float],
    config: OptimConfig,
    auxk: int,
    compute: torch.dtype,
) -> Route:
    """The fused route for float32 on a CPU with a sparse code, squared error and AuxK; else autograd."""
    fits = set(terms) <= {"squared_error", "auxk"} and terms.get("squared_error") == 1.0
    if fits and model.W_enc.device.type == "cpu" and compute == torch.float32 and model.code.sparse:
        return FusedRoute(model, moments, terms, config, auxk)
    return AutogradRoute(model, moments, terms, config, auxk, compute)


class AutogradRoute:
    """Forward, backward, clip, Adam."""

    name = "autograd"

    def __init__(
        self,
        model: Autoencoder,
        moments: Moments,
        terms: Mapping[str, float],
        config: OptimConfig,
        auxk: int,
        compute: torch.dtype,
    ) -> None:
        self.model, self.moments, self.terms = model, moments, terms
        self.config, self.auxk, self.compute = config, auxk, compute

    def take(self, x: Tensor, target: Tensor, dead: Tensor, rate: Rate, allowed: Tensor) -> Taken:
        """See `Route`."""
        model = self.model
        named = dict(model.named_parameters())
        with torch.autocast(x.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
            codes, reconstruction = model(x)
            step = Step(
                x=x,
                target=target,
                codes=codes,
                reconstruction=reconstruction,
                W_enc=model.W_enc,
                b_enc=model.b_enc,
                b_pre=model.dictionary.b,
                W_dec=model.dictionary.W,
                dead=dead,
                auxk=self.auxk,
            )
            loss, parts = total_loss(self.terms, step)
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = torch.stack([g.float().square().sum() for g in gradients]).sum().sqrt()
        scale = clip_scale(norm, limit(self.config, model))
        scale = torch.where(allowed & torch.isfinite(loss), scale, torch.nan)
        with torch.no_grad():
            for (name, p), gradient in zip(named.items(), gradients, strict=True):
                adam_step(
                    p,
                    gradient,
                    self.moments.m[name],
                    self.moments.v[name],
                    step=rate.step,
                    lr=rate.lr,
                    beta1=self.config.beta1,
                    beta2=self.config.beta2,
                    eps=self.config.eps,
                    scale=scale,
                    unit_rows=p is model.dictionary.W,
                )
        error = (target - reconstruction.detach()).float().square().sum(1)
        return Taken(codes, error, loss.detach(), parts, norm)


class FusedRoute:
    """Encode, decode and residual in one pass, AuxK on the compacted dead rows, then the sweep that updates."""

    name = "fused"

    def __init__(
        self, model: Autoencoder, moments: Moments, terms: Mapping[str, float], config: OptimConfig, auxk: int
    ) -> None:
        self.model, self.terms, self.config, self.auxk = model, terms, config, auxk
        order = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "dictionary.W", "b_dec": "dictionary.b"}
        named = dict(model.named_parameters())
        self.params = Parameters(**{field: named[name].data for field, name in order.items()})
        self.m = Parameters(**{field: moments.m[name] for field, name in order.items()})
        self.v = Parameters(**{field: moments.v[name] for field, name in order.items()})
        self.workspace = Workspace()

    def take(self, x: Tensor, target: Tensor, dead: Tensor, rate: Rate, allowed: Tensor) -> Taken:
        """See `Route`."""
        with torch.no_grad():
            codes = self.model.encode(x)
        forward = fused_forward(self.params, x, codes=codes, target=target, workspace=self.workspace)
        parts = {"squared_error": forward.squared_error.mean()}
        extra = None
        if "auxk" in self.terms:
            parts["auxk"], extra = self._auxk(x, forward.residual, codes, dead)
        loss = sum((self.terms[name] * part for name, part in parts.items()), torch.zeros(()))
        if not (allowed & torch.isfinite(loss)):
            return Taken(codes, forward.squared_error, loss, parts, torch.zeros(()))
        result = fused_update(
            self.params,
            self.m,
            self.v,
            forward,
            step=rate.step,
            lr=rate.lr,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            eps=self.config.eps,
            max_norm=limit(self.config, self.model),
            extra=extra,
        )
        return Taken(codes, forward.squared_error, loss, parts, result.grad_norm)

    def _auxk(
        self, x: Tensor, residual: Tensor, codes: SparseCodes, dead: Tensor
    ) -> tuple[Tensor, RowGradients | None]:
        """The AuxK term's mean, and its weighted gradients on the rows of the dead latents."""
        if dead.numel() == 0:
            return torch.zeros(()), None
        rows = [t[dead].requires_grad_() for t in (self.params.W_enc, self.params.b_enc, self.params.W_dec)]
        step = Step(
            x=x,
            target=residual,
            codes=codes,
            reconstruction=torch.zeros(()),
            W_enc=rows[0],
            b_enc=rows[1],
            b_pre=self.params.b_dec,
            W_dec=rows[2],
            dead=torch.arange(len(dead)),
            auxk=self.auxk,
        )
        term = auxk(step).mean()
        gradients = torch.autograd.grad(self.terms["auxk"] * term, rows)
        return term.detach(), RowGradients(dead, *gradients)


def limit(config: OptimConfig, model: Autoencoder) -> float | None:
    """The largest global gradient norm let through, or None.

    In units of d, because on inputs with mean ||x||² = d the gradient of an untrained dictionary has a norm below 2 d
    (by Cauchy and Schwarz, ||2/N Σ f e|| <= 2 d): a limit of some d stops explosions and nothing else.
    """
    return config.clip * model.dim if config.clip else None
