"""Optimizers by name. Adam and sign descent are our own, Adam is fused; the others come from libraries.

Every optimizer keeps its state in named tensors ("kind.parameter"), which checkpoints save and resampling resets.
Unit atoms keep their norm: a step ignores the part of the gradient along the atom, and normalises the atom after.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError, OptimConfig
from sae.models.autoencoder import Autoencoder
from sae_kernels import adam_step, zero_moment
from sae_kernels.formats.naive import moment_shape

MOMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}
"""--moments -> the dtype in which those of a matrix are stored."""


def parameters_of(model: Autoencoder) -> dict[str, Tensor]:
    """Name -> trained parameter."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def latent_rows(parameters: Mapping[str, Tensor]) -> list[str]:
    """The parameters whose first axis is the latents."""
    return [name for name in parameters if name in ("W_enc", "b_enc", "dictionary.W") or name.startswith("code.")]


def unit_atoms(model: Autoencoder) -> Tensor | None:
    """The parameter whose rows are kept at unit norm, or None."""
    return model.dictionary.W if model.dictionary.unit else None


def moment_dtype(parameter: Tensor, config: OptimConfig) -> torch.dtype:
    """How the two moments of a parameter are stored: those of matrices as configured."""
    return MOMENTS[config.moments] if parameter.ndim == 2 else torch.float32


def moment_bytes(parameters: Mapping[str, Tensor], config: OptimConfig) -> int:
    """Bytes of both moments of all parameters."""
    dtypes = ((p, moment_dtype(p, config)) for p in parameters.values())
    return sum(2 * math.prod(moment_shape(p, dtype)) * dtype.itemsize for p, dtype in dtypes)


class Adam:
    """Adam through `sae_kernels.adam_step`; moments "m.<parameter>" and "v.<parameter>".

    Those of matrices are stored as the configuration says, all others in float32.
    """

    def __init__(self, model: Autoencoder, config: OptimConfig, beta1: float) -> None:
        self.model, self.config, self.beta1 = model, config, beta1
        self.parameters = parameters_of(model)
        self.tensors = {
            f"{kind}.{n}": zero_moment(p, moment_dtype(p, config)) for kind in "mv" for n, p in self.parameters.items()
        }

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], *, step: int, lr: float, scale: Tensor) -> None:
        """One step, counted from 1; `scale` multiplies the gradients, NaN skips the step."""
        for name, gradient in gradients.items():
            parameter = self.parameters[name]
            adam_step(
                parameter,
                gradient,
                self.tensors[f"m.{name}"],
                self.tensors[f"v.{name}"],
                step=step,
                lr=lr * (self.model.code.rate if name.startswith("code.") else 1.0),
                beta1=self.beta1,
                beta2=self.config.beta2,
                eps=self.config.eps,
                scale=scale,
                unit_rows=parameter is unit_atoms(self.model),
            )

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Reset the state of some latents' rows."""
        for name in latent_rows(self.parameters):
            for kind in "mv":
                self.tensors[f"{kind}.{name}"][latents] = 0

    def averaged(self) -> dict[str, Tensor]:
        """The parameters to save, where they differ from those the model trains with."""
        return {}


class ScheduleFreeSign:
    """Sign descent without a schedule: z <- z - lr sign(g(y)), x <- (1-c) x + c z, y <- (1-β) z + β x, c = 1/t.

    Schedule-free averaging (Defazio et al. 2024, eqs. 3 to 5) of sign descent. The model trains with y, where gradients
    are taken; x is saved. Tensors "z.<parameter>" and "x.<parameter>".
    """

    def __init__(self, model: Autoencoder, beta: float) -> None:
        self.model, self.beta = model, beta
        self.parameters = parameters_of(model)
        self.tensors = {f"{kind}.{n}": p.detach().clone() for kind in "zx" for n, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], *, step: int, lr: float, scale: Tensor) -> None:
        """One step, counted from 1; of `scale` only matters whether it is finite, since signs have no scale."""
        if step == 1:
            for name, parameter in self.parameters.items():
                self.tensors[f"z.{name}"].copy_(parameter)
                self.tensors[f"x.{name}"].copy_(parameter)
        go = torch.isfinite(scale)
        for name, gradient in gradients.items():
            y, z, x = self.parameters[name], self.tensors[f"z.{name}"], self.tensors[f"x.{name}"]
            atoms = y is unit_atoms(self.model)
            if atoms:
                gradient = gradient - (gradient * y).sum(1, keepdim=True) * y
            z_new = z - lr * gradient.sign()
            x_new = x + (z_new - x) / step
            if atoms:
                z_new, x_new = (torch.nn.functional.normalize(t, dim=1) for t in (z_new, x_new))
            y_new = (1 - self.beta) * z_new + self.beta * x_new
            for tensor, new in ((z, z_new), (x, x_new), (y, _unit(y_new) if atoms else y_new)):
                tensor.copy_(torch.where(go, new, tensor))

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Restart both sequences from the present rows of some latents."""
        for name in latent_rows(self.parameters):
            for kind in "zx":
                self.tensors[f"{kind}.{name}"][latents] = self.parameters[name][latents]

    def averaged(self) -> dict[str, Tensor]:
        """The average x."""
        return {name: self.tensors[f"x.{name}"] for name in self.parameters}


class Library:
    """An optimizer of torch or bitsandbytes for some parameters, `Adam` for the rest."""

    def __init__(self, model: Autoencoder, config: OptimConfig, beta1: float) -> None:
        self.model = model
        self.parameters = parameters_of(model)
        if config.optimizer == "muon":
            # Muon orthogonalises matrices; biases and thresholds have nothing to orthogonalise
            self.names = [name for name, p in self.parameters.items() if p.ndim == 2]
            matrices: Any = [self.parameters[name] for name in self.names]
            self.optimizer: Any = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=0.95, nesterov=True)
        else:
            import bitsandbytes  # pyright: ignore[reportMissingImports]

            self.names = list(self.parameters)
            betas = (beta1, config.beta2)
            parameters = list(self.parameters.values())
            self.optimizer = bitsandbytes.optim.Adam8bit(parameters, lr=1.0, betas=betas, eps=config.eps)
        self.adam = Adam(model, config, beta1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """State of both optimizers."""
        tensors = {name: t for name, t in self.adam.tensors.items() if name.split(".", 1)[1] not in self.names}
        for name in self.names:
            state = self.optimizer.state[self.parameters[name]]
            tensors |= {f"{kind}.{name}": value for kind, value in state.items() if isinstance(value, Tensor)}
        return tensors

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], *, step: int, lr: float, scale: Tensor) -> None:
        """One step, counted from 1. Here the host waits to know whether the step is taken."""
        if not torch.isfinite(scale):
            return
        W = unit_atoms(self.model)
        for name in self.names:
            gradient = gradients[name] * scale
            if W is not None and self.parameters[name] is W:
                gradient = gradient - (gradient * W).sum(1, keepdim=True) * W
            self.parameters[name].grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if W is not None:
            W.copy_(_unit(W))
        rest = {name: g for name, g in gradients.items() if name not in self.names}
        self.adam.step(rest, step=step, lr=lr, scale=scale)

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Reset the state of some latents' rows."""
        for name in set(self.names) & set(latent_rows(self.parameters)):
            for value in self.optimizer.state[self.parameters[name]].values():
                if isinstance(value, Tensor) and value.shape == self.parameters[name].shape:
                    value[latents] = 0
        self.adam.forget(latents)

    def averaged(self) -> dict[str, Tensor]:
        """Nothing: the model's parameters are saved."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the state that `tensors` returned."""
        for name in self.names:
            ending = f".{name}"
            self.optimizer.state[self.parameters[name]] |= {
                key.removesuffix(ending): t.clone() for key, t in tensors.items() if key.endswith(ending)
            }


Optimizer = Adam | ScheduleFreeSign | Library


def check_optimizer(config: OptimConfig) -> None:
    """Refuse an optimizer whose library is not installed.

    Raises:
        ConfigError: says which package is missing.
    """
    if config.optimizer == "adam8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--optimizer adam8bit: needs a package; install it with: pip install bitsandbytes")
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"--optimizer muon: needs torch 2.9 or newer, this is {torch.__version__}")


def make_optimizer(model: Autoencoder, config: OptimConfig, beta1: float) -> Optimizer:
    """The configured optimizer of a model's parameters."""
    check_optimizer(config)
    if config.optimizer == "adam":
        return Adam(model, config, beta1)
    if config.optimizer == "signsgd":
        return ScheduleFreeSign(model, beta1)
    return Library(model, config, beta1)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
