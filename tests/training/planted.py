"""Shared by the tests of training: data with a planted dictionary, and trainers of every variant on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import OptimConfig, SAEConfig
from sae.models.language import VARIANTS, build, find_variant, recipe_of
from sae.modules.losses import Term
from sae.training.routes import AutogradRoute, FusedRoute, StepContext, StepOutcome
from sae.training.trainer import Trainer

DIM, DIM_OUT, FEATURES, ACTIVE, BATCH = 23, 17, 48, 4, 128
SITES = [11, 12]
"""Widths of a crosscoder's sites; one after the other they are DIM wide."""


class Pair(NamedTuple):
    """One batch."""

    x: Tensor
    """[BATCH, DIM]"""
    y: Tensor
    """What a transcoder reconstructs [BATCH, DIM_OUT]."""
    adjacent: Tensor
    """bool [BATCH / 2]; rows 2i and 2i + 1 share half of their features where it is true."""


def planted(count: int, seed: int = 0, rows: int = BATCH) -> list[Pair]:
    """Sparse combinations of 48 random unit features, and of 48 others for the targets; float16 like a store's rows."""
    draw = torch.Generator().manual_seed(seed)
    features, others = (torch.nn.functional.normalize(torch.randn(FEATURES, d, generator=draw)) for d in (DIM, DIM_OUT))
    batches = []
    for _ in range(count):
        chosen = torch.rand(rows, FEATURES, generator=draw).topk(ACTIVE).indices
        adjacent = torch.rand(rows // 2, generator=draw) < 0.7
        chosen[1::2, : ACTIVE // 2] = torch.where(
            adjacent.unsqueeze(1), chosen[::2, : ACTIVE // 2], chosen[1::2, : ACTIVE // 2]
        )
        codes = torch.zeros(rows, FEATURES)
        codes.scatter_(1, chosen, 1 + torch.rand(rows, ACTIVE, generator=draw))
        batches.append(Pair((codes @ features + 0.5).half(), (2 * codes @ others - 1).half(), adjacent))
    return batches


TIED = [name for name in VARIANTS if build(SAEConfig(variant=name, width=8, k=2), 4).code.tied]
BASES = [name for name, row in VARIANTS.items() if row.base is None and name not in TIED]
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"variant": name} for name in VARIANTS},
    "relu, tanh": {"variant": "relu", "penalty": "tanh"},
    "jumprelu, anthropic": {"variant": "jumprelu", "recipe": "anthropic"},
    "jumprelu, target": {"variant": "jumprelu", "recipe": "target"},
    # a window wide enough that many entries lie in it
    "jumprelu, wide": {"variant": "jumprelu", "bandwidth": 0.2},
    "jumprelu, anthropic, narrow": {"variant": "jumprelu", "recipe": "anthropic", "bandwidth": 0.2},
    "jumprelu, target, wide": {"variant": "jumprelu", "recipe": "target", "bandwidth": 0.2},
    **{
        f"{name}, {base}": {"variant": name, "base": base}
        for name, row in VARIANTS.items()
        for base in BASES
        if row.base not in (None, base)
    },
}
"""Every variant, and every way to train one: settings of `SAEConfig`. A new row of the table is here by itself."""


def trainer_of(
    settings: dict[str, Any],
    *,
    steps: int,
    dead_after: int = 10**9,
    optim: dict[str, Any] | None = None,
    terms: list[Term] | None = None,
    device: str = "cpu",
) -> Trainer:
    """A trainer for batches of `planted`; `settings` are of `SAEConfig`, `terms` replace the variant's loss."""
    sae = SAEConfig(**{"width": 131, "k": 2, **settings})
    variant = find_variant(sae)
    recipe = recipe_of(sae, SITES if variant.several_sites else [DIM], [DIM_OUT] if variant.transcodes else None)
    return Trainer(
        recipe if terms is None else recipe._replace(terms=terms, penalty=None),
        OptimConfig(**{"lr": 3e-3, **(optim or {})}),
        steps=steps,
        dead_after=dead_after,
        auxk=5,
        device=torch.device(device),
        seed=0,
    )


def initialise(trainer: Trainer, batches: list[Pair], **more: Any) -> None:
    """From the first four batches."""
    inputs = [batch.x for batch in batches[:4]]
    trainer.initialise(inputs, [batch.y for batch in batches[:4]] if trainer.model.transcodes else inputs, **more)


def run(trainer: Trainer, batches: list[Pair]) -> Trainer:
    """One step a batch."""
    for batch in batches:
        target = batch.y if trainer.model.transcodes else batch.x
        trainer.step(batch.x, target, batch.adjacent if find_variant(trainer.sae).neighbours else None)
    return trainer


def trained(settings: dict[str, Any], batches: list[Pair], **more: Any) -> Trainer:
    """A trainer that was initialised on the batches and took them all."""
    trainer = trainer_of(settings, **{"steps": len(batches), **more})
    initialise(trainer, batches)
    return run(trainer, batches)


def use_autograd(trainer: Trainer) -> None:
    """Let whole gradients and the optimizer do the step."""
    trainer.route = AutogradRoute(
        trainer.model,
        trainer.optimizer,
        trainer.config,
        trainer.auxk,
        torch.float32,
        trainer.recipe.target_widths,
    )


def note_dense_steps(route: FusedRoute, steps: list[int]) -> None:
    """Add to `steps` each step that the route leaves to autograd."""
    take = route.autograd.take

    def taking(x: Tensor, target: Tensor, now: StepContext) -> StepOutcome:
        steps.append(now.step)
        return take(x, target, now)

    route.autograd.take = taking  # type: ignore[method-assign]


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||, and ||a|| where b is zero."""
    return ((a - b).norm() / (b.norm() if b.norm() > 0 else 1.0)).item()
