"""Two ways to take one optimizer step, with one result.

- `AutogradRoute`: any code, any loss terms, any precision, any optimizer; whole gradients, then the optimizer.
- `FusedRoute`: Adam in float32 on a code that lists its entries: one latent-major sweep makes the gradients of both
  matrices and updates them, and no F x d gradient is ever written (see `sae_kernels.fused_step`). What is particular to
  a variant happens on the listed entries alone, a few numbers a token.

`choose_route` picks; the run's log says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.codes.base import DENSE_ABOVE
from sae.modules.losses import Step, Term, find_term, total_loss
from sae.modules.sums import total
from sae.training.optimizers import Adam, Optimizer, parameters_of
from sae_kernels import (
    Parameters,
    RowGradients,
    SparseCodes,
    StepForward,
    Workspace,
    adam_step,
    clip_scale,
    fused_forward,
    fused_update,
)


class Now(NamedTuple):
    """What changes from step to step beside the data."""

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
    """See `Step.power`."""
    adjacent: Tensor | None = None
    """See `Step.adjacent`."""
    generator: torch.Generator | None = None
    """Of a stochastic code's draws."""
    corrupted: Tensor | None = None
    """See `Step.corrupted`."""
    progress: float = 1.0
    """See `Step.progress`."""
    running: Tensor | None = None
    """See `Step.running`."""


class Taken(NamedTuple):
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

    def take(self, x: Tensor, target: Tensor, now: Now) -> Taken:
        """One step on normalised x [N, d] and target [N, d_out], in place on weights and optimizer.

        A step whose loss or gradient is not finite changes nothing.
        """
        ...


def choose_route(
    model: Autoencoder,
    optimizer: Optimizer,
    terms: Sequence[Term],
    config: OptimConfig,
    *,
    auxk: int,
    compute: torch.dtype,
    site_widths: Sequence[int],
) -> Route:
    """The fused route for Adam in float32 on a CPU, where every term reads what it can differentiate; else autograd."""
    slow = AutogradRoute(model, optimizer, config, auxk, compute, site_widths)
    reads = [find_term(term.name).reads for term in terms]
    known = {"squared_error", "nested_error", "gate_error"}
    fits = all(
        kind != "all" and (kind != "reconstruction" or t.name in known) for t, kind in zip(terms, reads, strict=True)
    )
    fits &= all(term.weight == 1.0 for term in terms if term.name in ("squared_error", "nested_error"))
    # an atom's norms over sites are no constant, so terms that count them have a gradient by the atoms
    fits &= len(site_widths) == 1 or all(
        k == "reconstruction" or t.name == "auxk" for t, k in zip(terms, reads, strict=True)
    )
    cpu = model.W_enc.device.type == "cpu" and compute == torch.float32
    fits &= model.stem is None and model.head is None and model.dictionary.unit and model.code.rows == 1
    fits &= not model.code.tied and model.code.name not in ("identity", "sigmoid")
    if fits and cpu and isinstance(optimizer, Adam):
        return FusedRoute(model, optimizer, config, auxk, slow)
    return slow


class AutogradRoute:
    """Forward, backward, clip, optimizer."""

    name = "autograd"

    def __init__(
        self,
        model: Autoencoder,
        optimizer: Optimizer,
        config: OptimConfig,
        auxk: int,
        compute: torch.dtype,
        site_widths: Sequence[int],
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.config, self.auxk, self.compute, self.site_widths = config, auxk, compute, list(site_widths)

    def take(self, x: Tensor, target: Tensor, now: Now) -> Taken:
        """See `Route`."""
        model = self.model
        with torch.autocast(x.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
            embedded = model.embed(x)
            listed = model.select(embedded)
            codes = model.code.activate(listed) if now.generator is None else model.code.sample(listed, now.generator)
            decoded = model.dictionary.decode(codes)
            passed = model.code.pass_through(decoded, embedded)
            reconstruction = model.outputs(passed)
            compared = target if model.W_skip is None else target - x @ model.W_skip.T
            step = Step(
                x=embedded,
                target=compared,
                code=model.code,
                listed=listed,
                codes=codes,
                reconstruction=reconstruction,
                W_enc=model.W_enc,
                b_enc=model.b_enc,
                b_pre=model.b_pre,
                W_dec=model.dictionary.W,
                b_dec=model.dictionary.b,
                norms=self._norms(),
                dead=now.dead,
                auxk=self.auxk,
                power=now.power,
                adjacent=now.adjacent,
                decoded=decoded,
                squashed=model.head is not None and model.head.squash,
                corrupted=now.corrupted,
                progress=now.progress,
                running=now.running,
            )
            loss, parts = total_loss(now.terms, step)
        named = parameters_of(model)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        gradients = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}
        norm = torch.stack([total(g.float().square()) for g in gradients.values()]).sum().sqrt()
        scale = clip_scale(norm, limit(self.config, model))
        scale = torch.where(now.allowed & torch.isfinite(loss), scale, torch.nan)
        self.optimizer.step(gradients, step=now.step, lr=now.lr, scale=scale)
        error = (compared - step.mean).detach().float().square().sum(1)
        codes = codes.with_values(codes.values.detach())
        return Taken(codes, embedded.detach(), error, loss.detach(), parts, norm)

    def _norms(self) -> Tensor | None:
        """Σ over sites of ||w_j^site|| [F], or None for one site: atoms have unit norm."""
        if len(self.site_widths) == 1:
            return None
        return torch.stack([part.norm(dim=1) for part in self.model.dictionary.W.split(self.site_widths, dim=1)]).sum(0)


class FusedRoute:
    """Select, activate, then decode and residual in one pass; small gradients on entries and rows; then the sweep.

    The chain rule is cut at the listed pre-activations. Behind them, dL/df of an entry is `factor` times its dot with
    the residual (that pass makes it), and autograd on the entries alone turns it, with the penalties, into gradients by
    pre-activation and by the code's own parameters. Before them lies the sweep.
    """

    name = "fused"

    def __init__(
        self, model: Autoencoder, optimizer: Adam, config: OptimConfig, auxk: int, dense: AutogradRoute
    ) -> None:
        self.model, self.optimizer, self.config, self.auxk, self.dense = model, optimizer, config, auxk, dense
        order = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "dictionary.W", "b_dec": "dictionary.b"}
        named = parameters_of(model)
        self.params = Parameters(**{field: named[name].data for field, name in order.items()})
        self.m, self.v = (
            Parameters(**{field: optimizer.tensors[f"{kind}.{name}"] for field, name in order.items()}) for kind in "mv"
        )
        self.own = {name: p for name, p in named.items() if name not in order.values()}
        self.workspace, self.gate_workspace = Workspace(), Workspace()

    def take(self, x: Tensor, target: Tensor, now: Now) -> Taken:
        """See `Route`."""
        model = self.model
        with torch.no_grad():
            listed = model.select(x)
            compared = target if model.W_skip is None else target - x @ model.W_skip.T
        if listed.offsets is None and listed.values.numel() > DENSE_ABOVE * x.shape[0] * model.width:
            return self.dense.take(x, target, now)
        pre = listed.values.requires_grad_()
        listed = listed.with_values(pre)
        codes = listed if model.code.plain else model.code.activate(listed)
        values = codes.values
        codes = codes.with_values(values.detach())
        forward = fused_forward(
            self.params,
            x,
            codes=codes,
            target=compared,
            tied=not model.transcodes,
            prefixes=_prefixes(now.terms),
            workspace=self.workspace,
        )
        step = Step(
            x=x,
            target=forward.residual,
            code=model.code,
            listed=listed,
            codes=codes.with_values(torch.relu(values) if model.code.plain else values),
            reconstruction=torch.zeros(()),
            **dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), self.params, strict=True)),
            b_pre=None if model.transcodes else self.params.b_dec,
            norms=None,
            dead=now.dead,
            auxk=self.auxk,
            power=now.power,
            adjacent=now.adjacent,
        )
        parts, outputs, seeds, extra = self._terms(step, forward, compared, now)
        loss = sum((term.weight * parts[term.name] for term in now.terms), torch.zeros(()))
        codes_only = [p for name, p in self.own.items() if name.startswith("code.")]
        through, own = None, {}
        if outputs or not model.code.plain:
            found = torch.autograd.grad(
                [step.codes.values, *outputs],
                [pre, *codes_only],
                [forward.dots * forward.factor, *seeds],
                allow_unused=True,
            )
            through = found[0]
            names = [name for name in self.own if name.startswith("code.")]
            own = {n: torch.zeros_like(self.own[n]) if g is None else g for n, g in zip(names, found[1:], strict=True)}
        if model.W_skip is not None:
            own["W_skip"] = forward.factor * forward.spread[:: forward.groups].T @ x
        error = forward.residual.square().sum(1) if forward.starts is not None else forward.squared_error
        # a gradient of the code's own parameters that is not finite makes the norm so, and stops the step
        own_square = sum((float(total(gradient.double().square())) for gradient in own.values()), 0.0)
        if not (now.allowed & torch.isfinite(loss)):
            return Taken(codes, x, error, loss.detach(), parts, torch.zeros(()))
        adam = {"step": now.step, "lr": now.lr, "beta1": self.optimizer.beta1}
        adam |= {"beta2": self.config.beta2, "eps": self.config.eps}
        result = fused_update(
            self.params, self.m, self.v, forward, **adam,
            max_norm=limit(self.config, model), extra=extra, through=through, more=own_square,
        )  # fmt: skip
        if result.applied:
            adam["scale"] = clip_scale(result.grad_norm, limit(self.config, model))
            with torch.no_grad():
                for name, gradient in own.items():
                    moments = (self.optimizer.tensors[f"{kind}.{name}"] for kind in "mv")
                    rate = now.lr * (model.code.rate if name.startswith("code.") else 1.0)
                    adam_step(self.own[name], gradient, *moments, **{**adam, "lr": rate})
        return Taken(codes, x, error, loss.detach(), parts, result.grad_norm)

    def _terms(
        self, step: Step, forward: StepForward, target: Tensor, now: Now
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], RowGradients | None]:
        """Every term's mean; outputs on the entries with their seeds for autograd; gradients of the dead rows."""
        parts: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        extra = None
        for term in now.terms:
            reads = find_term(term.name).reads
            if term.name == "gate_error":
                gate = torch.relu(step.listed.values)
                behind = fused_forward(
                    self.params,
                    step.x,
                    codes=step.listed.with_values(gate.detach()),
                    target=target,
                    tied=not self.model.transcodes,
                    workspace=self.gate_workspace,
                )
                parts[term.name] = behind.squared_error.mean()
                outputs.append(gate)
                seeds.append(behind.dots * (behind.factor * term.weight))
            elif reads == "reconstruction":
                parts[term.name] = forward.squared_error.mean()
            elif reads == "entries":
                mean = term.values(step).mean()
                parts[term.name] = mean.detach()
                outputs.append(mean)
                seeds.append(torch.as_tensor(term.weight, dtype=mean.dtype))
            else:
                parts[term.name], extra = self._on_dead_rows(term, step)
        return parts, outputs, seeds, extra

    def _on_dead_rows(self, term: Term, step: Step) -> tuple[Tensor, RowGradients | None]:
        """The term's mean, and its weighted gradients on the rows of the dead latents."""
        if step.dead.numel() == 0:
            return torch.zeros(()), None
        rows = [t[step.dead].requires_grad_() for t in (self.params.W_enc, self.params.b_enc, self.params.W_dec)]
        alone = step._replace(W_enc=rows[0], b_enc=rows[1], W_dec=rows[2], dead=torch.arange(len(step.dead)))
        theta = getattr(self.model.code, "theta", None)
        if theta is not None:
            alone = alone._replace(code=_Thresholds(theta.detach()[step.dead]))
        mean = term.values(alone).mean()
        found = torch.autograd.grad(term.weight * mean, rows, allow_unused=True)
        gradients = [torch.zeros_like(r) if g is None else g for r, g in zip(rows, found, strict=True)]
        return mean.detach(), RowGradients(step.dead, *gradients)


class _Thresholds(torch.nn.Module):
    """The thresholds of the dead rows, where a term looks for those of all latents."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = theta


def _prefixes(terms: Sequence[Term]) -> Sequence[int] | None:
    found = [term.settings["prefixes"] for term in terms if term.name == "nested_error"]
    return found[0] if found else None


def limit(config: OptimConfig, model: Autoencoder) -> float | None:
    """The largest global gradient norm let through, or None.

    In units of d, because on inputs with mean ||x||² = d the gradient of an untrained dictionary has a norm below 2 d
    (by Cauchy and Schwarz, ||2/N Σ f e|| <= 2 d): a limit of some d stops explosions and nothing else.
    """
    return config.clip * model.dim if config.clip else None
