"""What a mesh cannot train, refused by name before anything is loaded."""

from __future__ import annotations

import importlib.util

from torch import __version__ as version

from sae.base.launcher import world_size
from sae.config import ConfigError, OptimConfig, RunConfig, TrainConfig
from sae.models.recipe import Recipe
from sae.modules.codes import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.training.distributed.route import OF_LATENTS, OF_RECONSTRUCTION
from sae.training.distributed.shape import Shape
from sae.training.text import TextData

CODES = (TopK, BatchTopK, ReLU, JumpReLU, Gated)
REVIVALS = ("auxk", "pre_activation", "none")


def shape_of(config: RunConfig) -> Shape:
    """The mesh of a job that torchrun started.

    Raises:
        ConfigError: --mesh is not for this number of processes, or the run is of a kind that trains in one process.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"torchrun: {world_size()} processes share runs on text (--model and --dataset); start this one without it"
        )
    return Shape.of(config.mesh, world_size())


def check_mesh(data: TextData, recipe: Recipe, shape: Shape) -> None:
    """Refuse settings that ranks cannot share.

    Args:
        data: not yet prepared.
        recipe: the whole autoencoder, on the meta device.

    Raises:
        ConfigError: names the flag, and what would do.
    """
    if importlib.util.find_spec("torch.distributed.checkpoint.hf_storage") is None:
        raise ConfigError(f"torchrun: checkpoints of several processes need torch 2.9 or newer, this is {version}")
    config, batch = data.config, data.batch
    _check_variant(config, recipe)
    _check_optimizer(config.optim, shape)
    width = recipe.config.width
    if width % shape.latent:
        raise ConfigError(
            f"--width {width}: {shape.latent} latent ranks cannot have equal parts; expected a multiple of "
            f"{shape.latent}, such as {_near(width, shape.latent)}, or --mesh with {_divisors(width)} latent ranks"
        )
    if batch % shape.data:
        raise ConfigError(
            f"--batch {batch}: {shape.data} data ranks cannot have equal slices; expected a multiple of {shape.data}, "
            f"such as {_near(batch, shape.data)}"
        )
    most = max(getattr(recipe.config, "k_start", None) or 0, recipe.config.k)
    if recipe.penalty is None and most > width // shape.latent:
        raise ConfigError(
            f"--mesh {shape}: each of {shape.latent} latent ranks holds {width // shape.latent} latents, fewer than "
            f"the {most} of a row; expected at most {width // most} latent ranks"
        )
    every = getattr(recipe.model.code, "every", 1)
    if batch // shape.data % every:
        raise ConfigError(
            f"--batch {batch}: --variant {config.sae.variant} lists a window in every {every}th row, and slices of "
            f"{batch // shape.data} rows do not start there; expected a multiple of {every * shape.data}"
        )
    if config.epochs > 1 and config.store is None:
        raise ConfigError(
            f"--epochs {config.epochs}: activations stay in the memory of one process; several ranks read them from a "
            "store: --store DIR"
        )
    if config.store is not None and not data.complete:
        raise ConfigError(
            f"--store {config.store}: it lacks some of the {config.tokens:,} tokens, and several processes only read "
            f"it; fill it first: sae harvest --store {config.store} --tokens {config.tokens} ..."
        )


def _check_variant(config: TrainConfig, recipe: Recipe) -> None:
    name, code = config.sae.variant, recipe.model.code
    if type(code) not in CODES:
        raise ConfigError(f"--variant {name}: several processes cannot share its code, {code.name}; start one process")
    known = {*OF_RECONSTRUCTION, *OF_LATENTS}
    for term in recipe.terms:
        if term.name not in known:
            raise ConfigError(
                f"--variant {name}: several processes cannot share its loss term {term.name}; start one process"
            )
    if recipe.revival not in REVIVALS:
        raise ConfigError(
            f"--revival {recipe.revival}: several processes cannot share it; expected {', '.join(REVIVALS)}"
        )


def _check_optimizer(optim: OptimConfig, shape: Shape) -> None:
    if optim.optimizer != "adam":
        raise ConfigError(f"--optimizer {optim.optimizer}: several processes cannot share it; expected adam")
    if optim.weights != "float32":
        raise ConfigError(f"--weights {optim.weights}: several processes cannot share them; expected float32")
    if optim.graphs == "on":
        raise ConfigError("--graphs on: several processes exchange sums inside a step; expected auto or off")
    if optim.moments != "float32" and shape.latent > 1:
        raise ConfigError(
            f"--moments {optim.moments}: is rounded by a latent's place among all, which latent ranks do not share; "
            "expected float32, or data ranks alone"
        )


def _near(number: int, divisor: int) -> int:
    """The nearest multiple of `divisor` from it on."""
    return -(-number // divisor) * divisor


def _divisors(width: int) -> str:
    """The first numbers of ranks that divide a width, in words."""
    numbers = [str(n) for n in range(1, min(width, 64) + 1) if width % n == 0]
    return ", ".join(numbers[:6])
