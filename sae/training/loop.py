"""The loop of one run or of many on one stream: steps, metrics, checkpoints, and a stop that loses nothing.

trainee = Trainee(config, trainer, steps=batches.steps, batch_rows=2048, unit="tokens")
take_steps((Taking([trainee], batch) for batch in batches.iterate(trainee.state)), [trainee], stop, progress, hint="")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from sae.base.files import CorruptError
from sae.base.objects import StorageError
from sae.base.progress import Interrupted, Progress, StopSignal
from sae.base.pulse import PULSE
from sae.config import RunConfig
from sae.data.batching import Batch, Batches
from sae.data.rows import DataError
from sae.training.logging import RunLog, SilentLog
from sae.training.trainer import Trainer
from sae.training.window import DivergedError

METRICS_STATE = "metrics"
"""Key of a checkpoint's data: length and hash of metrics.jsonl."""
FIRST_BATCHES = 8  # whose inputs set the scale and the pre-bias


class Trainee:
    """A run under way: its trainer, its metrics, its checkpoints. With `config.resume`, from the newest checkpoint on.

    Args:
        steps: of the whole run.
        batch_rows: rows of a batch.
        unit: what a row is, for the metrics.
        open_log: where metrics go.
    """

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        *,
        steps: int,
        batch_rows: int,
        unit: str,
        open_log: type[RunLog] | type[SilentLog] = RunLog,
    ) -> None:
        self.config, self.trainer, self.unit = config, trainer, unit
        self.steps, self.batch_rows = steps, batch_rows
        self.note = ""
        """The newest metrics, for people."""
        self._folder = config.out / "checkpoints"
        self._every = max(1, config.checkpoint_every // batch_rows)
        self._open_log = open_log
        self._log: RunLog | SilentLog | None = None
        self._closed = False
        self._first: list[Batch] = []  # batches on which the trainer is to be set up
        self.state: dict[str, Any] | None = (
            trainer.resume(self._folder, keep=config.keep_checkpoints) if config.resume else None
        )
        """The data's state, with which the stream continues."""
        self._saved: int | None = None  # the newest checkpoint's step
        if self.state is not None:
            # a checkpoint of an earlier version has none
            metrics = self.state.pop(METRICS_STATE, None)
            self._log = open_log(config, resume_at=trainer.taken, before=metrics)
            self._saved = trainer.taken
        self._earlier = trainer.seconds

    @property
    def received(self) -> int:
        """Batches that it got, in this process and earlier ones."""
        return self.trainer.taken + len(self._first)

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.trainer.taken == self.steps

    @property
    def seconds(self) -> float:
        """Time of training in this process: its own steps and, where it is the only run, the wait for its batches."""
        return self.trainer.seconds - self._earlier

    @property
    def last(self) -> dict[str, Any]:
        """The last line of the metrics."""
        return {} if self._log is None else self._log.last

    def take(self, batch: Batch, check: Callable[[], None], waited: float = 0.0) -> None:
        """A step on the next batch; the first few wait until the trainer is set up on them.

        Args:
            batch: the next one.
            check: called between two steps; what it raises ends them.
            waited: seconds that the batch was waited for.

        Raises:
            DivergedError: the step was not finite; the state before it was saved.
        """
        begun = time.perf_counter() - waited
        batches = [batch]
        if self.state is None:
            self._first.append(batch)
            if len(self._first) == min(FIRST_BATCHES, self.steps):
                batches, self._first = self._first, []
                initialise(self.trainer, batches)
                self._log = self._open_log(self.config, resume_at=0)
            else:
                batches = []
        try:
            for number, each in enumerate(batches):
                if number:
                    check()
                self._step(each)
        except DivergedError:
            self.save()
            raise
        finally:
            self.trainer.seconds += time.perf_counter() - begun

    def _step(self, batch: Batch) -> None:
        trainer, log = self.trainer, self._log
        assert log is not None
        trainer.step(batch.input, batch.target, batch.adjacent)
        self.state = batch.state
        if trainer.taken % self.config.log_every == 0 or trainer.taken == self.steps:
            window = trainer.window()
            log.write({"step": trainer.taken, self.unit: trainer.taken * self.batch_rows, **window._asdict()})
            pressure = "" if window.sparsity is None else f"  penalty {window.sparsity:.3g}"
            self.note = f"FVU {window.fvu:.3f}  L0 {window.l0:.1f}  dead {window.dead:.1%}{pressure}"
        if trainer.taken % self._every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless the newest one is of this step or the run is closed."""
        state, trainer, log = self.state, self.trainer, self._log
        if self._closed or log is None:
            return
        # after a step that was not finite, noticed late on a GPU, the data is ahead of the weights: keep the old one
        if state is not None and state["step"] == trainer.taken != self._saved:
            with PULSE.without_steps(f"Writing the checkpoint of step {trainer.taken}."):
                trainer.save(self._folder, {**state, METRICS_STATE: log.state()}, keep=self.config.keep_checkpoints)
            self._saved = trainer.taken

    def close(self) -> None:
        """Close the metrics; nothing is saved from then on."""
        if self._log is not None and not self._closed:
            self._log.close()
        self._closed = True


class Taking(NamedTuple):
    """The next batch of some runs."""

    trainees: Sequence[Trainee]
    batch: Batch


def take_steps(
    stream: Iterable[Taking],
    trainees: Sequence[Trainee],
    stop: StopSignal,
    progress: Progress,
    *,
    hint: str,
    unit: str = "tokens",
    failed: Callable[[Trainee, DivergedError], None] | None = None,
    finished: Callable[[Trainee], None] | None = None,
) -> None:
    """Take all steps of a stream; where it is stopped, every run is saved.

    Args:
        stream: batches, each with the runs that it is the next one of.
        trainees: all of these runs.
        hint: tells the user how to resume after a stop.
        unit: what a row is, for the progress bar.
        failed: called with a run whose step was not finite; by default the error is raised.
        finished: called with a run that has taken its last step.

    Raises:
        DivergedError: see `failed`.
        Interrupted: a signal came.
    """
    try:
        with progress.bar("Training", sum(t.steps * t.batch_rows for t in trainees), unit) as bar:
            bar.skip(sum(t.trainer.taken * t.batch_rows for t in trainees))
            asked = time.perf_counter()
            for takers, batch in stream:
                waited = time.perf_counter() - asked
                for trainee in takers:
                    try:
                        trainee.take(batch, partial(stop.check, hint), waited if len(trainees) == 1 else 0.0)
                    except DivergedError as error:
                        if failed is None:
                            raise
                        failed(trainee, error)
                    bar.advance(trainee.batch_rows)
                    bar.note(trainee.note if len(trainees) == 1 else f"{trainee.config.out.name}: {trainee.note}")
                    if trainee.finished and finished is not None:
                        finished(trainee)
                stop.check(hint)
                asked = time.perf_counter()
    except (Interrupted, DataError, CorruptError, StorageError):
        for trainee in trainees:
            trainee.save()
        raise
    finally:
        for trainee in trainees:
            trainee.close()


def initialise(trainer: Trainer, first: Sequence[Batch]) -> None:
    """Set a trainer up on the first batches."""
    trainer.initialise([batch.input for batch in first], [batch.target for batch in first])


def train_in_memory(trainer: Trainer, batches: Batches) -> None:
    """Take all steps of a run that has no folder: no metrics, no checkpoints."""
    stream = batches.iterate(None)
    first = list(islice(stream, FIRST_BATCHES))
    initialise(trainer, first)
    for batch in chain(first, stream):
        trainer.step(batch.input, batch.target, batch.adjacent)
