"""One training run from text to a saved autoencoder: harvest, train, checkpoint, save.

result = train(TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first")))
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from sae.base.files import publish_json
from sae.base.progress import Progress, StopSignal
from sae.config import TrainConfig
from sae.harvest.beginning import described
from sae.harvest.buffer import LiveBatches, StoredBatches
from sae.harvest.language_model import LanguageModel
from sae.harvest.opening import opening
from sae.harvest.stream import Harvest
from sae.models.language import recipe_of
from sae.models.saved import CONFIG
from sae.training.batches import (
    how_to_resume,
    live_batches,
    load_model,
    open_store,
    settled,
    stored_batches,
)
from sae.training.loop import take_steps
from sae.training.plan import Plan, make_plan, run_record, widths
from sae.training.run_folder import finish_record, own_folder
from sae.training.trainer import Trainer
from sae_kernels import backends_used


class TrainResult(NamedTuple):
    """What a finished run gives."""

    out: Path
    """The run folder."""
    steps: int
    training_tokens: int
    """Tokens trained on, all epochs together."""
    tokens_held: int | None
    """Tokens whose activations were kept for all epochs; None for a live harvest."""
    tokens_left_over: int
    """Tokens that do not fill a batch and are left out of each epoch."""
    harvested: dict[str, int]
    """Tokens by kind that went through the model in this process: ordinary, bos, special, sink, other_role."""
    seconds: dict[str, float]
    """Wall time of "harvest" and "training" in this process (live harvest counts as training)."""
    last: dict[str, Any]
    """The last line of metrics.jsonl."""
    lr: float
    """Peak learning rate."""
    route: str
    """How steps were taken: fused or autograd."""
    backends: dict[str, str]
    """Op -> the backend that ran it."""


def train(config: TrainConfig) -> TrainResult:
    """Run `config` to its end and save the autoencoder in `config.out`.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; nothing was written.
        DivergedError: a step was not finite; the state before it was kept as a checkpoint.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    plan = make_plan(config)
    with own_folder(config), StopSignal() as stop, Progress() as progress:
        return _train_locked(plan, stop, progress)


def _train_locked(plan: Plan, stop: StopSignal, progress: Progress) -> TrainResult:
    config = plan.config
    lm = load_model(plan, progress)
    harvest = Harvest(lm, plan.sites, plan.documents, config.harvest)
    progress.say(opening(harvest.documents, lm.tokenizer, config.harvest, beginning=lm.beginning))
    plan = settled(plan, harvest, progress)
    begin_record(plan, lm)
    begun = time.perf_counter()
    if plan.cached:
        store = open_store(plan, harvest, stop, progress)
        batches: StoredBatches | LiveBatches = stored_batches(plan, store)
    else:
        batches = live_batches(plan, harvest, stop, progress)
    return fit(plan, batches, harvest, stop, progress, harvest_seconds=time.perf_counter() - begun)


def begin_record(plan: Plan, lm: LanguageModel) -> None:
    """Write what config.json says from the start of a run; a resumed run has it."""
    if not plan.config.resume:
        publish_json(plan.config.out / CONFIG, run_record(plan, lm))


def fit(
    plan: Plan,
    batches: StoredBatches | LiveBatches,
    harvest: Harvest,
    stop: StopSignal,
    progress: Progress,
    *,
    harvest_seconds: float,
) -> TrainResult:
    """Take all steps that are left, and save the autoencoder in its inference form."""
    config = plan.config
    begun = time.perf_counter()
    trainer = Trainer(
        recipe_of(config.sae, widths(plan.inputs), widths(plan.targets)),
        config.optim,
        steps=batches.steps,
        dead_after=plan.dead_after,
        auxk=plan.auxk,
        device=plan.device,
        seed=config.seed,
    )
    left_over = batches.left_over
    if left_over:
        progress.say(
            f"{left_over:,} of {batches.tokens:,} tokens do not fill a batch of {plan.batch:,} and are left out of "
            "each epoch."
        )
    progress.say(f"Training {batches.steps:,} steps of {plan.batch:,} tokens, {trainer.route.name} route.")
    last = take_steps(config, trainer, batches, plan.batch, stop, progress, hint=how_to_resume(config))
    trained = time.perf_counter()
    progress.say("Kernels: " + ", ".join(f"{op} on {backend}" for op, backend in backends_used().items()) + ".")
    own = {site.name for site in plan.sites}  # a harvest that feeds other runs too knows more
    limits = {name: limit for name, limit in harvest.norm_limits.items() if name in own}
    known = {
        "norm_limits": limits,
        "isolation": harvest.isolation,
        "beginning": described(harvest.lm),
        "store_precision": plan.precision,
    }
    finish_record(config, trainer, batch=plan.batch, harvest=known)
    return TrainResult(
        out=config.out,
        steps=batches.steps,
        training_tokens=batches.steps * plan.batch,
        tokens_held=batches.store.rows if isinstance(batches, StoredBatches) else None,
        tokens_left_over=left_over,
        harvested=dict(harvest.counts),
        seconds={"harvest": harvest_seconds, "training": trained - begun},
        last=last,
        lr=trainer.peak,
        route=trainer.route.name,
        backends=backends_used(),
    )
