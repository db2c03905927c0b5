"""One training run from text to a saved autoencoder: harvest, train, checkpoint, save.

result = train(TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first")))
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from sae.config import ConfigError, TrainConfig, to_json
from sae.files import publish_json, read_json
from sae.harvest.buffer import Batch, Batches, LiveBatches, StoredBatches
from sae.harvest.language_model import load_language_model
from sae.harvest.store import DiskStore, MemoryStore, Store, fill_store
from sae.harvest.stream import PERCENTILES, Harvest
from sae.models.language import build, find_variant
from sae.models.saved import CONFIG, save_weights
from sae.progress import Progress, StopSignal
from sae.training.checkpoint import load_newest, save_checkpoint
from sae.training.logging import RunLog
from sae.training.plan import Plan, make_plan, run_record
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
    config.out.mkdir(parents=True, exist_ok=True)
    with run_lock(config.out), StopSignal() as stop, Progress() as progress:
        return _train_locked(plan, stop, progress)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process.

    Raises:
        ConfigError: another process holds it; names its pid.
    """
    owner = folder / "run.pid"  # beside the lock: taking the lock empties its file
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise ConfigError(f"{folder}: another process (pid {pid}) is writing to this run folder") from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _train_locked(plan: Plan, stop: StopSignal, progress: Progress) -> TrainResult:
    config = plan.config
    lm = load_language_model(plan.source, device=plan.device, precision=config.harvest.precision)
    if not config.resume:
        publish_json(config.out / CONFIG, run_record(plan, lm.provenance))
    harvest = Harvest(lm, plan.sites, plan.documents, config.harvest)
    harvest.measure_norms()
    progress.say(_norm_report(harvest))
    begun = time.perf_counter()
    batches = _batches(plan, harvest, stop, progress)
    harvested = time.perf_counter()
    trainer = Trainer(
        build(config.sae, plan.width_in),
        find_variant(config.sae.variant).terms(config.sae),
        config.optim,
        steps=batches.steps,
        dead_after=plan.dead_after,
        auxk=plan.auxk,
        device=plan.device,
    )
    progress.say(f"Training {batches.steps:,} steps of {plan.batch:,} tokens, {trainer.route.name} route.")
    last = _train_loop(plan, trainer, batches, stop, progress)
    trained = time.perf_counter()
    record = read_json(config.out / CONFIG)
    record["autoencoder"] = save_weights(config.out, trainer.model.folded(trainer.scale), trainer.probe)
    record["training"] = {"scale": trainer.scale, "lr": trainer.peak, "steps": batches.steps, "batch": plan.batch}
    record["harvest"] = {"norm_limits": harvest.norm_limits, "isolation": harvest.isolation}
    publish_json(config.out / CONFIG, record)
    return TrainResult(
        out=config.out,
        steps=batches.steps,
        training_tokens=batches.steps * plan.batch,
        tokens_held=batches.store.rows if isinstance(batches, StoredBatches) else None,
        harvested=dict(harvest.counts),
        seconds={"harvest": harvested - begun, "training": trained - harvested},
        last=last,
        lr=trainer.peak,
        route=trainer.route.name,
        backends=backends_used(),
    )


def _batches(plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> Batches:
    """Stored batches (harvesting what the store lacks) or live ones."""
    config, site = plan.config, plan.sites[0].name
    dtype = getattr(torch, config.harvest.store_precision)
    buffer_bytes = config.buffer_mb << 20
    if not plan.cached:
        return LiveBatches(
            harvest,
            site,
            site,
            batch=plan.batch,
            tokens=config.tokens,
            buffer_bytes=buffer_bytes,
            dtype=dtype,
            seed=config.seed,
            overlap=plan.device.type == "cuda",
            on_restart=lambda n: progress.say(f"The data set is used up: pass {n} over it begins."),
        )
    with progress.bar("Harvesting", config.tokens, "tokens") as bar:

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check(f"harvested rows on disk stay in {config.store}" if config.store else "nothing was saved yet")

        store = fill_store(_open_store(plan), harvest, tokens=config.tokens, progress=advance)
    if store.rows < config.tokens:
        progress.say(f"The data set is used up: it gave {store.rows:,} of the {config.tokens:,} tokens asked for.")
    return StoredBatches(
        store, site, site, batch=plan.batch, epochs=config.epochs, buffer_bytes=buffer_bytes, seed=config.seed
    )


def _open_store(plan: Plan) -> Store:
    config = plan.config
    harvest = to_json(config.harvest)
    identity = {
        "format": 1,
        "sites": {site.name: site.width for site in plan.sites},
        "precision": config.harvest.store_precision,
        "data": plan.documents.provenance,
        **{name: harvest[name] for name in ("model", "context", "contexts", "max_norm", "keep_special")},
        "model_precision": config.harvest.precision,
    }
    return DiskStore(config.store, identity) if config.store else MemoryStore(identity, config.tokens)


def _train_loop(plan: Plan, trainer: Trainer, batches: Batches, stop: StopSignal, progress: Progress) -> dict[str, Any]:
    """Take all steps that are left; returns the last line of the metrics."""
    config = plan.config
    folder = config.out / "checkpoints"
    state, stream = _start(plan, trainer, batches, progress)

    def save() -> None:
        # after a step that was not finite, noticed late on a GPU, the data is ahead of the weights: keep the old one
        if state is not None and state["step"] == trainer.taken:
            save_checkpoint(folder, trainer.taken, *trainer.state(), state, keep=config.keep_checkpoints)

    log = RunLog(config, resume_at=trainer.taken)
    every = max(1, config.checkpoint_every // plan.batch)
    try:
        with progress.bar("Training", batches.steps * plan.batch, "tokens") as bar:
            bar.skip(trainer.taken * plan.batch)
            for batch in stream:
                trainer.step(batch.input, batch.target)
                state = batch.state
                if trainer.taken % config.log_every == 0 or trainer.taken == batches.steps:
                    window = trainer.window()
                    log.write({"step": trainer.taken, "tokens": trainer.taken * plan.batch, **window._asdict()})
                    bar.note(f"FVU {window.fvu:.3f}  L0 {window.l0:.1f}  dead {window.dead:.1%}")
                bar.advance(plan.batch)
                if stop.requested or trainer.taken % every == 0:
                    save()
                stop.check(f"continue with: sae train --resume --out {config.out}")
    except DivergedError:
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
    trainer.initialise([batch.input for batch in first], [batch.target for batch in first], seed=plan.config.seed)
    return None, chain(first, stream)


def _norm_report(harvest: Harvest) -> str:
    """The percentiles of activation norms over the first forward pass, and what was left out for it."""
    lines = []
    for site, values in harvest.norm_percentiles.items():
        shown = "  ".join(f"p{p} {value:.4g}" for p, value in zip(PERCENTILES, values, strict=True))
        limit = harvest.norm_limits.get(site) if harvest.norm_limits else None
        left_out = f"; tokens over {limit:.4g} are left out as sinks" if limit else ""
        lines.append(f"Activation norms at {site}: {shown}{left_out}.")
    return "\n".join(lines)
