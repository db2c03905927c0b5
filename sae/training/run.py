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

from sae.config import ConfigError, TrainConfig
from sae.data.documents import DataError
from sae.files import publish_json, read_json
from sae.harvest.buffer import Batch, Batches, LiveBatches, StoredBatches
from sae.harvest.language_model import load_language_model
from sae.harvest.store import DiskStore, MemoryStore, Store, fill_store
from sae.harvest.stream import PERCENTILES, Harvest
from sae.models.language import find_variant
from sae.models.saved import CONFIG, save_weights
from sae.progress import PLAIN_SECONDS, Interrupted, Progress, StopSignal
from sae.training.checkpoint import load_newest, save_checkpoint
from sae.training.logging import METRICS, RunLog
from sae.training.plan import Plan, make_plan, run_record, widths
from sae.training.trainer import DivergedError, Trainer
from sae_kernels import backends_used

FIRST_BATCHES = 8  # whose inputs set the scale and the pre-bias
LOCK, OWNER = "run.lock", "run.pid"


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


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a folder that is written to for this process.

    Raises:
        ConfigError: another process holds it; names its pid.
    """
    owner = folder / OWNER  # beside the lock: taking the lock empties its file
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise ConfigError(f"{folder}: another process (pid {pid}) is writing to this folder") from None
    try:
        with contextlib.suppress(OSError):  # a courtesy to the second process; the lock holds without it
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
    if plan.cached:
        batches: Batches = _stored_batches(plan, harvest, stop, progress)
    else:
        batches = _live_batches(plan, harvest, stop, progress)
    harvested = time.perf_counter()
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
        "form": trainer.model.code.describe(),
    }
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


def _live_batches(plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> LiveBatches:
    config = plan.config
    spoken = time.perf_counter()
    rows_harvested = 0

    def advance(rows: int) -> None:
        nonlocal spoken, rows_harvested
        rows_harvested += rows
        # a buffer can take minutes to fill, while no step is taken
        if time.perf_counter() - spoken > PLAIN_SECONDS:
            spoken = time.perf_counter()
            progress.say(f"Harvested {rows_harvested:,} tokens.")
        stop.check(_how_to_resume(config))

    return LiveBatches(
        harvest,
        [site.name for site in plan.inputs],
        [site.name for site in plan.targets],
        batch=plan.batch,
        tokens=config.tokens,
        buffer_bytes=config.buffer_mb << 20,
        dtype=getattr(torch, config.harvest.store_precision),
        seed=config.seed,
        overlap=plan.device.type == "cuda",
        on_restart=lambda n: progress.say(f"The data set is used up: pass {n} over it begins."),
        progress=advance,
        pairs=find_variant(config.sae).neighbours,
    )


def _stored_batches(plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> StoredBatches:
    """Batches over a store, after harvesting what it lacks."""
    config = plan.config
    if config.store is None:
        store = _fill(MemoryStore(plan.store_identity, config.tokens), plan, harvest, stop, progress)
    else:
        config.store.mkdir(parents=True, exist_ok=True)
        with run_lock(config.store):
            store = _fill(DiskStore(config.store, plan.store_identity), plan, harvest, stop, progress)
    if store.rows < config.tokens:
        progress.say(f"The data set is used up: it gave {store.rows:,} of the {config.tokens:,} tokens asked for.")
    return StoredBatches(
        store,
        [site.name for site in plan.inputs],
        [site.name for site in plan.targets],
        batch=plan.batch,
        epochs=config.epochs,
        buffer_bytes=config.buffer_mb << 20,
        seed=config.seed,
        pairs=find_variant(config.sae).neighbours,
    )


def _fill(store: Store, plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> Store:
    config = plan.config
    kept = f"harvested rows on disk stay in {config.store}; " if config.store else ""
    with progress.bar("Harvesting", config.tokens, "tokens") as bar:

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check(kept + _how_to_resume(config))

        return fill_store(store, harvest, tokens=config.tokens, progress=advance)


def _how_to_resume(config: TrainConfig) -> str:
    return f"continue with: sae train --resume --out {config.out}"


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
                stop.check(_how_to_resume(config))
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


def _norm_report(harvest: Harvest) -> str:
    """The percentiles of activation norms over the first forward pass, and what was left out for it."""
    lines = []
    for site, values in harvest.norm_percentiles.items():
        shown = "  ".join(f"p{p} {value:.4g}" for p, value in zip(PERCENTILES, values, strict=True))
        limit = harvest.norm_limits.get(site) if harvest.norm_limits else None
        left_out = f"; tokens over {limit:.4g} are left out as sinks" if limit else ""
        lines.append(f"Activation norms at {site}: {shown}{left_out}.")
    return "\n".join(lines)
