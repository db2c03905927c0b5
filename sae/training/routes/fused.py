"""The fused step: encode, activate, decode and residual in one pass, small gradients on entries and rows, one sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from sae.training import optimizers
from sae.training.optimizers import parameters_of
from sae.training.routes.autograd import AutogradRoute
from sae.training.routes.base import StepContext, StepOutcome, largest_norm
from sae_kernels import (
    Adam,
    Copies,
    Parameters,
    RowGradients,
    SparseCodes,
    StepForward,
    Workspace,
    adam_step,
    copies_of,
    fill_numbers,
    fused_backend,
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
        self, model: Autoencoder, optimizer: optimizers.Adam, config: OptimConfig, auxk: int, autograd: AutogradRoute
    ) -> None:
        self.model, self.optimizer, self.config, self.auxk, self.autograd = model, optimizer, config, auxk, autograd
        self.parameters = parameters_of(model)
        self.m, self.v = (
            Parameters(**{field: optimizer.tensors[f"{kind}.{name}"] for field, name in NAMES.items()}) for kind in "mv"
        )
        self.others = {name: p for name, p in self.parameters.items() if name not in NAMES.values()}
        self.of_code = {name: p for name, p in self.others.items() if name.startswith("code.")}
        self.workspaces = [Workspace()]  # of the main forward pass, then one for each frozen error of a step
        self.on_gpu = fused_backend(model.W_enc) == "gpu"
        self.copies: Copies | None = None
        self.versions = (-1, -1)  # of both matrices when the copies were made
        # where kernels read what changes with the step
        self.numbers = torch.zeros(3, dtype=torch.int32, device=model.W_enc.device) if self.on_gpu else None

    @property
    def params(self) -> Parameters:
        """The parameters' present memory: the trainer may store them in another format."""
        return Parameters(**{field: self.parameters[name].data for field, name in NAMES.items()})

    @staticmethod
    def fits(model: Autoencoder, terms: Sequence[Term], site_widths: Sequence[int]) -> bool:
        """Whether it can train this model on these terms.

        It differentiates one squared error, of weight 1. Over several sites an atom's norm is no constant, so that
        terms of entries have a gradient by the atoms that a sweep over entries lacks.
        """
        views = {Reconstructions, DeadRows} | ({Entries} if len(site_widths) == 1 else set())
        errors = [term for term in terms if term.view is Reconstructions]
        weights = [(term.weight, term.warmup) for term in errors]
        linear = (
            model.stem is None and model.head is None and model.dictionary.unit and model.dictionary.W.requires_grad
        )
        return linear and model.code.fused and weights == [(1.0, 0.0)] and all(term.view in views for term in terms)

    def begin(self, now: StepContext) -> None:
        """Write the step's numbers, on a GPU."""
        if self.numbers is not None:
            fill_numbers(self.numbers, Adam(now.step, now.lr, self.optimizer.beta1, self.config.beta2, self.config.eps))

    def memory(self) -> tuple[object, ...]:
        """What a captured step depends on besides its arguments: where its tensors are, and that copies are fresh."""
        tensors = [*self.params, *self.m, *self.v, *(() if self.copies is None else self.copies)]
        return self.copies is not None and self._versions() == self.versions, *(t.data_ptr() for t in tensors)

    def take(self, x: Tensor, target: Tensor, now: StepContext) -> StepOutcome:
        """One step, in place; by autograd while the code lists so many latents that whole products are faster."""
        model = self.model
        with torch.no_grad(), self._autocast():
            compared = model.without_skip(target, x)
            listed, centred = self._select(x)
        dense = listed.offsets is None and listed.values.numel() > DENSE_ABOVE * x.shape[0] * model.width
        (error_term,) = (term for term in now.terms if term.view is Reconstructions)
        if dense or error_term.weight != 1:
            self.copies = None  # the optimizer changes the weights and not the copies
            return self.autograd.take(x, target, now)
        on_entries = [term for term in now.terms if term.view is Entries]
        needs_dots = bool(on_entries) or not model.code.plain
        pre = listed.values.float().requires_grad_()
        listed = listed.with_values(pre)
        codes = listed if model.code.plain else model.code.activate(listed)
        values = codes.values
        codes = codes.with_values(values.detach())
        decode = partial(self._decode, x=x, target=compared, centred=centred)
        prefixes = error_term.of(Reconstructions()).prefixes
        forward = decode(codes, prefixes=prefixes, dots=needs_dots, workspace=self.workspaces[0])
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
        with self._autocast():
            means = [term.of(entries).mean() for term in on_entries]
            parts, extra = self._on_dead_rows([term for term in now.terms if term.view is DeadRows], forward, now)
        parts |= {term.name: mean.detach() for term, mean in zip(on_entries, means, strict=True)}
        parts[error_term.name] = forward.squared_error.mean()
        parts = {term.name: parts[term.name] for term in now.terms}
        loss = sum((term.weight * parts[term.name] for term in now.terms), x.new_zeros(()))
        through, gradients = None, {}
        if needs_dots:
            seeds = [_weight(term, mean) for term, mean in zip(on_entries, means, strict=True)]
            through, *by_parameter = torch.autograd.grad(
                [entries.codes.values, *means],
                [pre, *self.of_code.values()],
                [forward.dots * forward.factor, *seeds],
                allow_unused=True,
                materialize_grads=True,
            )
            gradients = dict(zip(self.of_code, by_parameter, strict=True))
        if model.W_skip is not None:
            with self._autocast():
                gradients["W_skip"] = (forward.factor * forward.spread[:: forward.groups].T @ x).float()
        error = forward.residual.float().square().sum(1) if forward.starts is not None else forward.squared_error
        norm = self._update(forward, now, now.allowed & torch.isfinite(loss), extra, through, gradients)
        return StepOutcome(codes, x, error, loss.detach(), parts, norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        """As in the autograd route, for what is computed by torch."""
        compute = self.autograd.compute
        return torch.autocast(self.params.W_enc.device.type, dtype=compute, enabled=compute != torch.float32)

    def _select(self, x: Tensor) -> tuple[SparseCodes, Tensor | None]:
        """The listed pre-activations and, where copies of the weights are read, what the encoder read, centred in
        float32 and then rounded.

        On a CPU copies in float32 are made of weights that are stored in fewer bits.
        """
        model = self.model
        if not self.on_gpu and model.W_enc.dtype == torch.float32:
            return model.select(model.embed(x)), None
        if self.copies is None or self.versions != self._versions():
            self.copies = None  # its memory is free for the new ones
            self.copies, self.versions = copies_of(self.params, self.autograd.compute), self._versions()
        W_enc = self.copies.W_enc
        centred = (x if model.b_pre is None else x - model.b_pre).to(W_enc.dtype)
        return model.code.select(centred, W_enc, model.b_enc, None), centred

    def _versions(self) -> tuple[int, int]:
        return self.model.W_enc._version, self.model.dictionary.W._version

    def _decode(
        self,
        codes: SparseCodes,
        x: Tensor,
        target: Tensor,
        centred: Tensor | None,
        workspace: Workspace,
        prefixes: Sequence[int] | None = None,
        dots: bool = True,
    ) -> StepForward:
        return fused_forward(
            self.params,
            x,
            codes=codes,
            target=target,
            tied=not self.model.transcodes,
            prefixes=prefixes,
            centred=centred,
            dots=dots,
            copies=self.copies,
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
            return {term.name: forward.squared_error.new_zeros(()) for term in terms}, None
        rows = [t[now.dead].float().requires_grad_() for t in (self.params.W_enc, self.params.b_enc, self.params.W_dec)]
        W_enc, b_enc, W_dec = rows
        view = DeadRows(
            pre=torch.nn.functional.linear(forward.centred, W_enc, b_enc),
            W_dec=W_dec,
            thresholds=self.model.code.threshold(now.dead),
            residual=forward.residual.float(),
            auxk=self.auxk,
            site_widths=self.autograd.site_widths,
        )
        means = [term.of(view).mean() for term in terms]
        seeds = [_weight(term, mean) for term, mean in zip(terms, means, strict=True)]
        gradients = torch.autograd.grad(means, rows, seeds, allow_unused=True, materialize_grads=True)
        parts = {term.name: mean.detach() for term, mean in zip(terms, means, strict=True)}
        return parts, RowGradients(now.dead, *gradients)

    def _update(
        self,
        forward: StepForward,
        now: StepContext,
        allowed: Tensor,
        extra: RowGradients | None,
        through: Tensor | None,
        gradients: dict[str, Tensor],
    ) -> Tensor:
        """The sweep, then Adam on all other parameters; the norm of the whole gradient."""
        adam = {"step": now.step, "lr": now.lr, "beta1": self.optimizer.beta1}
        adam |= {"beta2": self.config.beta2, "eps": self.config.eps}
        max_norm = largest_norm(self.config, self.model)
        # a gradient of another parameter that is not finite makes the norm so, and stops the step
        more = torch.zeros((), dtype=torch.float64, device=allowed.device)
        for gradient in gradients.values():
            more = more + total(gradient.double().square())
        result = fused_update(
            self.params, self.m, self.v, forward, **adam,
            max_norm=max_norm, extra=extra, through=through, more=more, allowed=allowed, numbers=self.numbers,
        )  # fmt: skip
        with torch.no_grad():
            for name, gradient in gradients.items():
                moments = (self.optimizer.tensors[f"{kind}.{name}"] for kind in "mv")
                own = {} if name in self.of_code else {"numbers": self.numbers}
                rate = now.lr * (self.model.code.rate if name in self.of_code else 1.0)
                adam_step(self.others[name], gradient, *moments, **{**adam, "lr": rate}, **own, scale=result.scale)
        return result.grad_norm


def _weight(term: Term, mean: Tensor) -> Tensor:
    """A term's weight like its mean; made on the device, as a copy would make the host wait for it."""
    weight: Any = term.weight
    return weight.to(mean.dtype) if isinstance(weight, Tensor) else mean.new_full((), weight)


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
