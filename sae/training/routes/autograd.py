"""Forward, backward, clip, optimizer: the route that trains everything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term, total_loss
from sae.modules.sums import total
from sae.modules.views import Entries, Everything, Output, frozen_error, site_norms
from sae.training.optimizers import Optimizer, parameters_of
from sae.training.routes.base import StepContext, StepOutcome, largest_norm
from sae.training.weights import in_float32
from sae_kernels import SparseCodes, clip_scale


class AutogradRoute:
    """Whole gradients by autograd, under autocast where `compute` is not float32."""

    name = "autograd"
    _everything = Everything

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
        self.config, self.auxk, self.compute, self.site_widths = config, auxk, compute, site_widths

    def begin(self, now: StepContext) -> None:
        """Nothing: the optimizer is given the step's numbers."""

    def take(self, x: Tensor, target: Tensor, now: StepContext) -> StepOutcome:
        """One step, in place."""
        model = self.model
        with in_float32(model):
            with torch.autocast(x.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
                everything = self._forward(x, target, now)
                loss, parts = total_loss(now.terms, everything)
            parameters = parameters_of(model)
            by_parameter = torch.autograd.grad(
                loss, list(parameters.values()), allow_unused=True, materialize_grads=True
            )
        gradients = dict(zip(parameters, by_parameter, strict=True))
        loss, parts, gradients = self._over_ranks(now.terms, loss, parts, gradients)
        norm = self._norm(gradients)
        scale = clip_scale(norm, largest_norm(self.config, model))
        scale = torch.where(now.allowed & torch.isfinite(loss), scale, torch.nan)
        self.optimizer.step(gradients, step=now.step, lr=now.lr, scale=scale)
        output, codes = everything.output, everything.entries.codes
        error = (output.target - output.mean).detach().float().square().sum(1)
        codes = codes.with_values(codes.values.detach())
        return StepOutcome(codes, everything.x.detach(), error, loss.detach(), parts, norm)

    def _over_ranks(
        self, terms: Sequence[Term], loss: Tensor, parts: dict[str, Tensor], gradients: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Loss, its parts and the gradients of the whole batch, where other processes have a share in them."""
        del terms
        return loss, parts, gradients

    def _norm(self, gradients: dict[str, Tensor]) -> Tensor:
        """The global norm of all gradients."""
        return torch.stack([total(g.float().square()) for g in gradients.values()]).sum().sqrt()

    def _frozen_error(self, codes: SparseCodes, target: Tensor) -> Tensor:
        """`Entries.frozen_error`."""
        return frozen_error(codes, target, self.model.dictionary.W, self.model.dictionary.b)

    def _forward(self, x: Tensor, target: Tensor, now: StepContext) -> Everything:
        model = self.model
        embedded, listed, codes = model.encoded(x, now.generator)
        decoded, outputs = model.decoded(codes, embedded)
        target = model.without_skip(target, x)
        W_dec, b_dec = model.dictionary.W, model.dictionary.b
        entries = Entries(
            code=model.code,
            listed=listed,
            codes=codes,
            dim=embedded.shape[1],
            norms=site_norms(W_dec, self.site_widths),
            power=now.power,
            adjacent=now.adjacent,
            progress=now.progress,
            running=now.running,
            frozen_error=partial(self._frozen_error, target=target),
        )
        return self._everything(
            entries=entries,
            output=Output(target=target, reconstruction=outputs, squashed=model.squashes, corrupted=now.corrupted),
            x=embedded,
            decoded=decoded,
            W_enc=model.W_enc,
            b_enc=model.b_enc,
            b_pre=model.b_pre,
            W_dec=W_dec,
            b_dec=b_dec,
            dead=now.dead,
            auxk=self.auxk,
            site_widths=self.site_widths,
        )
