"""A training run on several processes: each rank prepares its part, the first one writes the run folder.

torchrun --nproc-per-node 4 -m sae train --mesh 2x2 ...
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch

from sae.base.files import publish_json
from sae.base.progress import Interrupted, Progress, StopSignal
from sae.base.ranks import Ranks
from sae.config import ConfigError, RunConfig
from sae.data.batching import Batches
from sae.models.saved import CONFIG
from sae.training.data import TrainingData
from sae.training.distributed.batches import MeshLiveBatches, Slices
from sae.training.distributed.checks import check_mesh, shape_of
from sae.training.distributed.mesh import Mesh
from sae.training.distributed.trainer import MeshTrainer
from sae.training.logging import RunLog, SilentLog
from sae.training.loop import Taking, Trainee, take_steps
from sae.training.plan import Plan, make_plan
from sae.training.run_folder import finish_record, own_folder
from sae.training.space import check_space
from sae.training.text import TextData


class SharedStop(StopSignal):
    """Stops all ranks at the same step, whichever of them got the signal."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def check(self, hint: str) -> None:
        """Raise Interrupted in all ranks if a signal came to any of them; all must call this."""
        requested = int(self.ranks.largest(self.requested or 0))
        if requested:
            raise Interrupted(requested, hint)


class Trained(NamedTuple):
    """A run on ranks that has taken all its steps and is saved."""

    plan: Plan
    trainee: Trainee
    seconds: dict[str, float]
    """Beside those of training; none."""


def train_on_ranks(config: RunConfig, data: TrainingData | None = None) -> Trained:
    """`sae.training.run.train` in every process of the job.

    Raises:
        ConfigError: the mesh does not fit the run; nothing was written.
    """
    shape = shape_of(config)
    if data is not None:
        raise ConfigError(f"torchrun: runs on {data.name} train in one process")
    with Ranks.of_process(config.device) as ranks:
        plan = make_plan(config)
        assert isinstance(plan.data, TextData)
        check_mesh(plan.data, plan.recipe, shape)
        check_space(plan)
        mesh = Mesh(shape, plan.device)
        ranks.any(False)  # all ranks have seen the folder as it was
        owned = own_folder(plan.config) if ranks.first else contextlib.nullcontext()
        with owned, SharedStop(ranks) as stop, Progress() as progress:
            plan.data.prepare(progress)
            _check_alike(plan.data, ranks)
            return _fit(plan, mesh, ranks, stop, progress)


def _check_alike(data: TextData, ranks: Ranks) -> None:
    """One rank's measurements of the first forward pass for all; a complete store has recorded them."""
    harvest = data.harvest
    if harvest is None:  # all rows come from a store
        return
    measured = {"beginning": tuple(harvest.lm.beginning), "precision": data.precision}
    if ranks.any(ranks.share(measured) != measured):
        raise ConfigError(
            "the ranks' machines disagree on how segments begin or how activations are kept; give --bos and "
            "--store-precision"
        )
    harvest.use_limits(ranks.share(dict(harvest.norm_limits)))


def _add_counts(data: TextData, ranks: Ranks) -> None:
    """Give every rank the tokens that all of them harvested, where text went through the model."""
    harvest = data.harvest
    if harvest is None:
        ranks.any(False)
        return
    names = list(harvest.kinds.values())
    sums = ranks.sum(torch.tensor([harvest.counts[name] for name in names]))
    harvest.counts = Counter(dict(zip(names, sums.tolist(), strict=True)))


def _batches(data: TextData, mesh: Mesh, stop: StopSignal, progress: Progress) -> Batches:
    if data.cached:
        return Slices(data.batches(stop, progress), mesh)
    return data.live(stop, progress, MeshLiveBatches, mesh=mesh)


def _stream(batches: Batches, trainee: Trainee) -> Iterator[Taking]:
    """The batches. Where this rank alone fails to get one, nothing is saved: a checkpoint takes all ranks."""
    try:
        for batch in batches.iterate(trainee.state):
            yield Taking([trainee], batch)
    except Interrupted:  # all ranks agree on it
        raise
    except Exception:
        trainee.close()
        raise


def _fit(plan: Plan, mesh: Mesh, ranks: Ranks, stop: StopSignal, progress: Progress) -> Trained:
    config, data = plan.config, plan.data
    assert isinstance(data, TextData)
    if ranks.first and not config.resume:
        publish_json(config.out / CONFIG, plan.record())
    batches = _batches(data, mesh, stop, progress)
    trainer = MeshTrainer(
        data.recipe, data.optim, mesh=mesh, ranks=ranks, steps=batches.steps, auxk=plan.auxk,
        dead_after=plan.dead_after, device=plan.device, seed=config.seed,
    )  # fmt: skip
    progress.say(
        f"Training {batches.steps:,} steps of {data.batch:,} {data.unit} on {mesh.world} processes, "
        f"{mesh.shape.data} data x {mesh.shape.latent} latent: {data.batch // mesh.shape.data:,} rows and "
        f"{trainer.model.width:,} latents each, {trainer.route.name} route."
    )
    log = RunLog if ranks.first else SilentLog
    trainee = Trainee(config, trainer, steps=batches.steps, batch_rows=data.batch, unit=data.unit, open_log=log)
    if trainee.state is not None:
        progress.say(f"Resuming at step {trainer.taken} of {batches.steps}.")
    hint = f"continue with: {data.command} --resume --out {config.out}"
    take_steps(_stream(batches, trainee), [trainee], stop, progress, hint=hint, unit=data.unit)
    trainer.join()
    if ranks.first:
        finish_record(config, trainer, batch=data.batch, mesh=str(mesh.shape), **data.finished())
    _add_counts(data, ranks)  # waits for the first rank to have written
    return Trained(plan, trainee, {})
