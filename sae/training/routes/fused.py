"""The fused step: encode, activate, decode and residual in one pass, small gradients on entries and rows, one sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.codes.base import DENSE_ABOVE
from sae.modules.losses import Term
from sae.modules.sums import total
from sae.modules.views import DeadRows, Entries, Reconstructions
from sae.training.optimizers import Adam, parameters_of
from sae.training.routes.autograd import AutogradRoute
from sae.training.routes.base import StepContext, StepOutcome, largest_norm
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

NAMES = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "dictionary.W", "b_dec": "dictionary.b"}
"""The four parameters that the sweep updates: field of `Parameters` -> name in the model."""


class FusedRoute:
    """One step by `sae_kernels.fused_step`, without an F x d gradient.

    The chain rule is cut at the listed pre-activations. Behind the cut, dL/df of an entry is `factor` times the dot
    product of its atom with the residual (the forward pass computes it), and autograd on the entries alone turns that
    and the penalties into gradients by pre-activation and by the code's own parameters. Before the cut lies the sweep.
    """

    name = "fused"

    def __init__(
        self, model: Autoencoder, optimizer: Adam, config: OptimConfig, auxk: int, autograd: AutogradRoute
    ) -> None:
        self.model, self.optimizer, self.config, self.auxk, self.autograd = model, optimizer, config, auxk, autograd
        parameters = parameters_of(model)
        self.params = Parameters(**{field: parameters[name].data for field, name in NAMES.items()})
        self.m, self.v = (
            Parameters(**{field: optimizer.tensors[f"{kind}.{name}"] for field, name in NAMES.items()}) for kind in "mv"
        )
        self.others = {name: p for name, p in parameters.items() if name not in NAMES.values()}
        self.of_code = {name: p for name, p in self.others.items() if name.startswith("code.")}
        self.workspaces = [Workspace()]  # of the main forward pass, then one for each frozen error of a step

    @staticmethod
    def fits(model: Autoencoder, terms: Sequence[Term], site_widths: Sequence[int]) -> bool:
        """Whether it can train this model on these terms.

        It differentiates one squared error, of weight 1. Over several sites an atom's norm is no constant, so that
        terms of entries have a gradient by the atoms that a sweep over entries lacks.
        """
        views = {Reconstructions, DeadRows} | ({Entries} if len(site_widths) == 1 else set())
        errors = [term for term in terms if term.view is Reconstructions]
        weights = [(term.weight, term.warmup) for term in errors]
        linear = model.stem is None and model.head is None and model.dictionary.unit
        return linear and model.code.fused and weights == [(1.0, 0.0)] and all(term.view in views for term in terms)

    def take(self, x: Tensor, target: Tensor, now: StepContext) -> StepOutcome:
        """One step, in place; by autograd while the code lists so many latents that whole products are faster."""
        model = self.model
        with torch.no_grad():
            listed = model.select(model.embed(x))
            compared = model.without_skip(target, x)
        dense = listed.offsets is None and listed.values.numel() > DENSE_ABOVE * x.shape[0] * model.width
        (error_term,) = (term for term in now.terms if term.view is Reconstructions)
        if dense or error_term.weight != 1:
            return self.autograd.take(x, target, now)
        pre = listed.values.requires_grad_()
        listed = listed.with_values(pre)
        codes = listed if model.code.plain else model.code.activate(listed)
        values = codes.values
        codes = codes.with_values(values.detach())
        decode = partial(self._decode, x=x, target=compared)
        forward = decode(codes, prefixes=error_term.of(Reconstructions()).prefixes, workspace=self.workspaces[0])
        numbers = count(1)

        def frozen_error(others: SparseCodes) -> Tensor:
            workspace = self._workspace(next(numbers))
            return _FrozenError.apply(others.values, others, partial(decode, workspace=workspace))

        entries = Entries(
            code=model.code,
            listed=listed,
            codes=codes.with_values(torch.relu(values) if model.code.plain else values),
            dim=x.shape[1],
            power=now.power,
            adjacent=now.adjacent,
            progress=now.progress,
            running=now.running,
            frozen_error=frozen_error,
        )
        on_entries = [term for term in now.terms if term.view is Entries]
        means = [term.of(entries).mean() for term in on_entries]
        parts, extra = self._on_dead_rows([term for term in now.terms if term.view is DeadRows], forward, now)
        parts |= {term.name: mean.detach() for term, mean in zip(on_entries, means, strict=True)}
        parts[error_term.name] = forward.squared_error.mean()
        parts = {term.name: parts[term.name] for term in now.terms}
        loss = sum((term.weight * parts[term.name] for term in now.terms), torch.zeros(()))
        through, gradients = None, {}
        if means or not model.code.plain:
            seeds = [torch.as_tensor(term.weight, dtype=m.dtype) for term, m in zip(on_entries, means, strict=True)]
            through, *by_parameter = torch.autograd.grad(
                [entries.codes.values, *means],
                [pre, *self.of_code.values()],
                [forward.dots * forward.factor, *seeds],
                allow_unused=True,
                materialize_grads=True,
            )
            gradients = dict(zip(self.of_code, by_parameter, strict=True))
        if model.W_skip is not None:
            gradients["W_skip"] = forward.factor * forward.spread[:: forward.groups].T @ x
        error = forward.residual.square().sum(1) if forward.starts is not None else forward.squared_error
        if not (now.allowed & torch.isfinite(loss)):
            return StepOutcome(codes, x, error, loss.detach(), parts, torch.zeros(()))
        norm = self._update(forward, now, extra, through, gradients)
        return StepOutcome(codes, x, error, loss.detach(), parts, norm)

    def _decode(
        self,
        codes: SparseCodes,
        x: Tensor,
        target: Tensor,
        workspace: Workspace,
        prefixes: Sequence[int] | None = None,
    ) -> StepForward:
        return fused_forward(
            self.params,
            x,
            codes=codes,
            target=target,
            tied=not self.model.transcodes,
            prefixes=prefixes,
            workspace=workspace,
        )

    def _workspace(self, number: int) -> Workspace:
        if number == len(self.workspaces):
            self.workspaces.append(Workspace())
        return self.workspaces[number]

    def _on_dead_rows(
        self, terms: Sequence[Term], forward: StepForward, now: StepContext
    ) -> tuple[dict[str, Tensor], RowGradients | None]:
        """Means of the terms of dead rows, and the gradients of their weighted sum on those rows."""
        if not terms or now.dead.numel() == 0:
            return {term.name: torch.zeros(()) for term in terms}, None
        rows = [t[now.dead].requires_grad_() for t in (self.params.W_enc, self.params.b_enc, self.params.W_dec)]
        W_enc, b_enc, W_dec = rows
        view = DeadRows(
            pre=torch.nn.functional.linear(forward.centred, W_enc, b_enc),
            W_dec=W_dec,
            thresholds=self.model.code.threshold(now.dead),
            residual=forward.residual,
            auxk=self.auxk,
            site_widths=self.autograd.site_widths,
        )
        means = [term.of(view).mean() for term in terms]
        seeds = [torch.as_tensor(term.weight, dtype=m.dtype) for term, m in zip(terms, means, strict=True)]
        gradients = torch.autograd.grad(means, rows, seeds, allow_unused=True, materialize_grads=True)
        parts = {term.name: mean.detach() for term, mean in zip(terms, means, strict=True)}
        return parts, RowGradients(now.dead, *gradients)

    def _update(
        self,
        forward: StepForward,
        now: StepContext,
        extra: RowGradients | None,
        through: Tensor | None,
        gradients: dict[str, Tensor],
    ) -> Tensor:
        """The sweep, then Adam on all other parameters; the norm of the whole gradient."""
        adam = {"step": now.step, "lr": now.lr, "beta1": self.optimizer.beta1}
        adam |= {"beta2": self.config.beta2, "eps": self.config.eps}
        max_norm = largest_norm(self.config, self.model)
        # a gradient of another parameter that is not finite makes the norm so, and stops the step
        squares = sum((float(total(gradient.double().square())) for gradient in gradients.values()), 0.0)
        result = fused_update(
            self.params, self.m, self.v, forward, **adam,
            max_norm=max_norm, extra=extra, through=through, more=squares,
        )  # fmt: skip
        if result.applied:
            adam["scale"] = clip_scale(result.grad_norm, max_norm)
            with torch.no_grad():
                for name, gradient in gradients.items():
                    moments = (self.optimizer.tensors[f"{kind}.{name}"] for kind in "mv")
                    rate = now.lr * (self.model.code.rate if name in self.of_code else 1.0)
                    adam_step(self.others[name], gradient, *moments, **{**adam, "lr": rate})
        return result.grad_norm


class _FrozenError(torch.autograd.Function):
    """`Entries.frozen_error` from the fused forward pass: its dot products are the gradient by the codes' values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, codes: SparseCodes, decode: Callable[[SparseCodes], StepForward]) -> Tensor:
        ctx.codes = codes.with_values(values.detach())
        result = decode(ctx.codes)
        ctx.dots = result.dots
        return result.squared_error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return -2 * grads[0][ctx.codes.rows()] * ctx.dots, None, None
