"""One training run from text to a saved autoencoder: harvest, train, checkpoint, save.

result = train(TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first")))
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from sae.config import TrainConfig
from sae.data.documents import DataError
from sae.files import publish_json, read_json
from sae.harvest.buffer import Batch, Batches, StoredBatches
from sae.harvest.language_model import LanguageModel, load_language_model
from sae.harvest.stream import Harvest
from sae.models.saved import CONFIG, save_weights
from sae.progress import Interrupted, Progress, StopSignal
from sae.training.batches import (
    LOCK,
    OWNER,
    how_to_resume,
    live_batches,
    norm_report,
    open_store,
    run_lock,
    stored_batches,
)
from sae.training.checkpoint import load_newest, save_checkpoint
from sae.training.logging import METRICS, RunLog
from sae.training.plan import Plan, make_plan, run_record, widths
from sae.training.trainer import DivergedError, Trainer
from sae_kernels import backends_used

FIRST_BATCHES = 8  # whose inputs set the scale and the pre-bias


class TrainResult(NamedTuple):
    """What a finished run gives."""

    out: Path
    """The run folder."""
    steps: int
    training_tokens: int
    """Tokens trained on, all epochs together."""
    tokens_held: int | None
    """Tokens whose activations were kept for all epochs; None for a live harvest."""
    harvested: dict[str, int]
    """Tokens by kind that went through the model in this process: ordinary, bos, special, sink."""
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
    existed = config.out.exists()
    config.out.mkdir(parents=True, exist_ok=True)
    with run_lock(config.out), StopSignal() as stop, Progress() as progress:
        try:
            return _train_locked(plan, stop, progress)
        except BaseException as error:
            if not config.resume:
                _take_back(config.out, error, existed=existed)
            raise


def _take_back(out: Path, error: BaseException, *, existed: bool) -> None:
    """Remove the folder of a run that nothing can be resumed of: refused before its first step, or without a record."""
    refused = isinstance(error, ValueError) and not (out / METRICS).exists()
    if refused or not (out / CONFIG).exists():
        for name in (CONFIG, LOCK, OWNER):
            (out / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            if not existed:
                out.rmdir()


def _train_locked(plan: Plan, stop: StopSignal, progress: Progress) -> TrainResult:
    config = plan.config
    lm = load_language_model(plan.source, device=plan.device, precision=config.harvest.precision)
    harvest = Harvest(lm, plan.sites, plan.documents, config.harvest)
    begin_record(plan, lm)
    harvest.measure_norms()
    progress.say(norm_report(harvest))
    begun = time.perf_counter()
    if plan.cached:
        store = open_store(plan, harvest, stop, progress)
        batches: Batches = stored_batches(plan, store)
    else:
        batches = live_batches(plan, harvest, stop, progress)
    return fit(plan, batches, harvest, stop, progress, harvest_seconds=time.perf_counter() - begun)


def begin_record(plan: Plan, lm: LanguageModel) -> None:
    """Write what config.json says from the start of a run; a resumed run has it."""
    if not plan.config.resume:
        publish_json(plan.config.out / CONFIG, run_record(plan, lm.provenance))


def fit(
    plan: Plan, batches: Batches, harvest: Harvest, stop: StopSignal, progress: Progress, *, harvest_seconds: float
) -> TrainResult:
    """Take all steps that are left, and save the autoencoder in its inference form."""
    config = plan.config
    begun = time.perf_counter()
    trainer = Trainer(
        config.sae,
        config.optim,
        site_widths=widths(plan.inputs),
        target_widths=widths(plan.targets),
        steps=batches.steps,
        dead_after=plan.dead_after,
        auxk=plan.auxk,
        device=plan.device,
        seed=config.seed,
    )
    progress.say(f"Training {batches.steps:,} steps of {plan.batch:,} tokens, {trainer.route.name} route.")
    last = _train_loop(plan, trainer, batches, stop, progress)
    trained = time.perf_counter()
    progress.say("Kernels: " + ", ".join(f"{op} on {backend}" for op, backend in backends_used().items()) + ".")
    record = read_json(config.out / CONFIG)
    record["autoencoder"] = save_weights(config.out, trainer.finished(), trainer.probe)
    record["training"] = {
        "lr": trainer.peak,
        "steps": batches.steps,
        "batch": plan.batch,
        "seconds": trained - begun,
        "route": trainer.route.name,
        "form": trainer.model.code.describe(),
    }
    own = {site.name for site in plan.sites}  # a harvest that feeds other runs too knows more
    limits = {name: limit for name, limit in (harvest.norm_limits or {}).items() if name in own}
    record["harvest"] = {"norm_limits": limits, "isolation": harvest.isolation}
    publish_json(config.out / CONFIG, record)
    return TrainResult(
        out=config.out,
        steps=batches.steps,
        training_tokens=batches.steps * plan.batch,
        tokens_held=batches.store.rows if isinstance(batches, StoredBatches) else None,
        harvested=dict(harvest.counts),
        seconds={"harvest": harvest_seconds, "training": trained - begun},
        last=last,
        lr=trainer.peak,
        route=trainer.route.name,
        backends=backends_used(),
    )


def _train_loop(plan: Plan, trainer: Trainer, batches: Batches, stop: StopSignal, progress: Progress) -> dict[str, Any]:
    """Take all steps that are left; returns the last line of the metrics."""
    config = plan.config
    folder = config.out / "checkpoints"
    state, stream = _start(plan, trainer, batches, progress)
    saved = trainer.taken if state is not None else None  # the newest checkpoint's step

    def save() -> None:
        nonlocal saved
        # after a step that was not finite, noticed late on a GPU, the data is ahead of the weights: keep the old one
        if state is not None and state["step"] == trainer.taken != saved:
            save_checkpoint(folder, trainer.taken, *trainer.state(), state, keep=config.keep_checkpoints)
            saved = trainer.taken

    log = RunLog(config, resume_at=trainer.taken)
    every = max(1, config.checkpoint_every // plan.batch)
    try:
        with progress.bar("Training", batches.steps * plan.batch, "tokens") as bar:
            bar.skip(trainer.taken * plan.batch)
            for batch in stream:
                trainer.step(batch.input, batch.target, batch.adjacent)
                state = batch.state
                if trainer.taken % config.log_every == 0 or trainer.taken == batches.steps:
                    window = trainer.window()
                    log.write({"step": trainer.taken, "tokens": trainer.taken * plan.batch, **window._asdict()})
                    pressure = "" if window.sparsity is None else f"  penalty {window.sparsity:.3g}"
                    bar.note(f"FVU {window.fvu:.3f}  L0 {window.l0:.1f}  dead {window.dead:.1%}{pressure}")
                bar.advance(plan.batch)
                if trainer.taken % every == 0:
                    save()
                stop.check(how_to_resume(config))
    except (DivergedError, Interrupted, DataError):
        save()
        raise
    finally:
        log.close()
    return log.last


def _start(
    plan: Plan, trainer: Trainer, batches: Batches, progress: Progress
) -> tuple[dict[str, Any] | None, Iterator[Batch]]:
    """Set the trainer up, fresh or from the newest checkpoint; the data's state and the batches still to come."""
    checkpoint = load_newest(plan.config.out / "checkpoints") if plan.config.resume else None
    if checkpoint is not None:
        trainer.restore(checkpoint.tensors, checkpoint.trainer)
        progress.say(f"Resuming at step {trainer.taken} of {batches.steps}.")
        return checkpoint.data, batches.iterate(checkpoint.data)
    stream = batches.iterate(None)
    first = list(islice(stream, FIRST_BATCHES))
    trainer.initialise([batch.input for batch in first], [batch.target for batch in first])
    return None, chain(first, stream)
