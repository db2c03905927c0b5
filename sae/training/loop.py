"""The loop of a run: steps until the data ends, metrics, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from sae.base.progress import Interrupted, Progress, StopSignal
from sae.base.pulse import PULSE
from sae.config import RunConfig
from sae.data.batching import Batch, Batches
from sae.data.rows import DataError
from sae.training.logging import RunLog, SilentLog
from sae.training.trainer import DivergedError, Trainer

METRICS_STATE = "metrics"
"""Key of a checkpoint's data: length and hash of metrics.jsonl."""
FIRST_BATCHES = 8  # whose inputs set the scale and the pre-bias


def take_steps(
    config: RunConfig,
    trainer: Trainer,
    batches: Batches,
    batch_rows: int,
    stop: StopSignal,
    progress: Progress,
    *,
    hint: str,
    unit: str = "tokens",
    open_log: type[RunLog] | type[SilentLog] = RunLog,
) -> dict[str, Any]:
    """Take all remaining steps, from the newest checkpoint if `config.resume`.

    Args:
        batch_rows: rows of a batch.
        hint: tells the user how to resume after a stop.
        unit: what a row is, for the progress bar and the metrics.
        open_log: where metrics go.

    Returns:
        The last line of the metrics.
    """
    folder, begun = config.out / "checkpoints", time.perf_counter()
    state, stream, metrics = _start(config, trainer, batches, progress)
    earlier = trainer.seconds
    saved = trainer.taken if state is not None else None  # the newest checkpoint's step

    def save() -> None:
        nonlocal saved
        trainer.seconds = earlier + time.perf_counter() - begun
        # after a step that was not finite, noticed late on a GPU, the data is ahead of the weights: keep the old one
        if state is not None and state["step"] == trainer.taken != saved:
            with PULSE.without_steps(f"Writing the checkpoint of step {trainer.taken}."):
                trainer.save(folder, {**state, METRICS_STATE: log.state()}, keep=config.keep_checkpoints)
            saved = trainer.taken

    log = open_log(config, resume_at=trainer.taken, before=metrics)
    every = max(1, config.checkpoint_every // batch_rows)
    try:
        with progress.bar("Training", batches.steps * batch_rows, unit) as bar:
            bar.skip(trainer.taken * batch_rows)
            for batch in stream:
                trainer.step(batch.input, batch.target, batch.adjacent)
                state = batch.state
                if trainer.taken % config.log_every == 0 or trainer.taken == batches.steps:
                    window = trainer.window()
                    log.write({"step": trainer.taken, unit: trainer.taken * batch_rows, **window._asdict()})
                    pressure = "" if window.sparsity is None else f"  penalty {window.sparsity:.3g}"
                    bar.note(f"FVU {window.fvu:.3f}  L0 {window.l0:.1f}  dead {window.dead:.1%}{pressure}")
                bar.advance(batch_rows)
                if trainer.taken % every == 0:
                    save()
                stop.check(hint)
    except (DivergedError, Interrupted, DataError):
        save()
        raise
    finally:
        log.close()
    trainer.seconds = earlier + time.perf_counter() - begun
    return log.last


def _start(
    config: RunConfig, trainer: Trainer, batches: Batches, progress: Progress
) -> tuple[dict[str, Any] | None, Iterator[Batch], dict[str, Any] | None]:
    """Initialise the trainer, or restore the newest checkpoint: the data's state, the batches left, the log's state."""
    state = trainer.resume(config.out / "checkpoints") if config.resume else None
    if state is not None:
        progress.say(f"Resuming at step {trainer.taken} of {batches.steps}.")
        # a checkpoint of an earlier version has none
        metrics = state.pop(METRICS_STATE, None)
        return state, batches.iterate(state), metrics
    return None, initialised(trainer, batches), None


def initialised(trainer: Trainer, batches: Batches) -> Iterator[Batch]:
    """All batches; the trainer is set up on the first of them."""
    stream = batches.iterate(None)
    first = list(islice(stream, FIRST_BATCHES))
    trainer.initialise([batch.input for batch in first], [batch.target for batch in first])
    return chain(first, stream)


def train_in_memory(trainer: Trainer, batches: Batches) -> None:
    """Take all steps of a run that has no folder: no metrics, no checkpoints."""
    for batch in initialised(trainer, batches):
        trainer.step(batch.input, batch.target, batch.adjacent)
