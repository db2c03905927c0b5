"""One training run to a saved autoencoder, whatever it trains on: prepare the data, train, checkpoint, save.

result = train(TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first")))
result = train(TensorTrainConfig(rows=TensorDataConfig(data="activations.npy"), out=Path("runs/own")))
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from sae.base.files import publish_json
from sae.base.launcher import world_size
from sae.base.progress import Progress, StopSignal
from sae.config import RunConfig
from sae.models.saved import CONFIG
from sae.training.data import TrainingData
from sae.training.loop import Taking, Trainee, take_steps
from sae.training.plan import Plan, make_plan
from sae.training.run_folder import finish_record, own_folder
from sae.training.space import check_space, try_steps
from sae_kernels import backends_used


class TrainResult(NamedTuple):
    """What a finished run gives."""

    out: Path
    """The run folder."""
    variant: str
    unit: str
    """What a sample is: tokens, images or rows."""
    steps: int
    samples: int
    """Samples trained on, all epochs together."""
    available: int | None
    """Samples of one epoch; None for a live harvest, which keeps none."""
    left_over: int
    """Samples that do not fill a batch and are left out of each epoch."""
    parameters: int
    """Trained numbers."""
    harvested: dict[str, int]
    """Text: tokens by kind that went through the model in this process: ordinary, bos, special, sink, other_role."""
    seconds: dict[str, float]
    """Wall time of "training" in this process, and for text of "harvest" (a live harvest counts as training)."""
    last: dict[str, Any]
    """The last line of metrics.jsonl."""
    lr: float
    """Peak learning rate."""
    route: str
    """How steps were taken: fused or autograd."""
    backends: dict[str, str]
    """Op -> the backend that ran it."""

    @property
    def training_tokens(self) -> int:
        """Samples trained on, all epochs together."""
        return self.samples

    @property
    def tokens_held(self) -> int | None:
        """Samples of one epoch."""
        return self.available

    @property
    def tokens_left_over(self) -> int:
        """Samples that do not fill a batch."""
        return self.left_over

    def to_json(self) -> dict[str, Any]:
        """As JSON values, the numbers of samples under the unit's name."""
        unit = self.unit
        names = {"samples": f"training_{unit}", "left_over": f"{unit}_left_over"}
        names["available"] = "tokens_held" if unit == "tokens" else unit
        values = {names.get(name, name): value for name, value in self._asdict().items() if name != "unit"}
        if unit != "tokens":
            del values["harvested"]
        return {**values, "out": str(self.out)}


def train(config: RunConfig, data: TrainingData | None = None) -> TrainResult:
    """Run `config` to its end and save the autoencoder in `config.out`.

    Args:
        config: a `TrainConfig` (text), `ImageTrainConfig`, `TensorTrainConfig`, or with `data` any other.
        data: what to train on; by default what `config` names.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; nothing was written.
        DivergedError: a step was not finite; the state before it was kept as a checkpoint.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.

    Example:
        >>> import sae
        >>> from pathlib import Path
        >>> harvest = sae.HarvestConfig(model="model", dataset="texts.jsonl", layer=1, context=64, contexts=8)
        >>> settings = sae.SAEConfig(variant="topk", width=128, k=8)
        >>> result = sae.train(sae.TrainConfig(harvest=harvest, sae=settings, tokens=8_192, out=Path("runs/first")))
        >>> result.variant, result.available
        ('topk', None)
    """
    if world_size() > 1:
        from sae.training.distributed.run import train_on_ranks

        return result_of(*train_on_ranks(config, data))
    plan = make_plan(config, data)
    check_space(plan)
    with own_folder(plan.config), StopSignal() as stop, Progress() as progress:
        plan.data.prepare(progress)
        return fit(plan, stop, progress)


def fit(plan: Plan, stop: StopSignal, progress: Progress) -> TrainResult:
    """Train on data that are prepared, in a folder that this process owns."""
    config, data = plan.config, plan.data
    begin_record(plan)
    begun = time.perf_counter()
    batches = data.batches(stop, progress)
    harvest = {"harvest": time.perf_counter() - begun} if data.unit == "tokens" else {}
    say_left_over(data, progress)
    trial = try_steps(plan)
    trainee = begin(plan, batches.steps, progress, about="" if trial is None else _duration(trial.seconds))
    hint = f"continue with: {data.command} --resume --out {config.out}"
    stream = (Taking([trainee], batch) for batch in batches.iterate(trainee.state))
    take_steps(stream, [trainee], stop, progress, hint=hint, unit=data.unit)
    progress.say("Kernels: " + ", ".join(f"{op} on {backend}" for op, backend in backends_used().items()) + ".")
    return finish(plan, trainee, progress, seconds=harvest)


def begin_record(plan: Plan) -> None:
    """Write the record of a run that begins."""
    if not plan.config.resume:
        publish_json(plan.config.out / CONFIG, plan.record())


def say_left_over(data: TrainingData, progress: Progress) -> None:
    """Say how many samples fill no batch."""
    if data.left_over:
        total = data.samples if data.available is None else data.available
        progress.say(
            f"{data.left_over:,} of {total:,} {data.unit} do not fill a batch of {data.batch:,} and are left out of "
            "each epoch."
        )


def begin(plan: Plan, steps: int, progress: Progress, *, about: str = "") -> Trainee:
    """The run with its trainer, untrained or from its newest checkpoint; `about` says how long it may take."""
    data = plan.data
    trainer = plan.trainer(steps)
    trainee = Trainee(plan.config, trainer, steps=steps, batch_rows=data.batch, unit=data.unit)
    passes = f", {data.epochs:,} passes over {data.available:,}" if data.available is not None else ""
    progress.say(
        f"Training {steps:,} steps of {data.batch:,} {data.unit}{passes}, {trainer.route.name} route"
        f"{f': about {about} in all' if about else ''}."
    )
    if trainee.state is not None:
        progress.say(f"Resuming at step {trainer.taken} of {steps}.")
    return trainee


def finish(plan: Plan, trainee: Trainee, progress: Progress, *, seconds: dict[str, float]) -> TrainResult:
    """Save the autoencoder of a run that has taken all its steps; `seconds` beside those of training."""
    data, last = plan.data, trainee.last
    finish_record(plan.config, trainee.trainer, batch=data.batch, **data.finished())
    if data.advice and last["fvu"] > 1:
        progress.say(f"FVU {last['fvu']:.2f}: worse than the mean of the {data.unit}. {data.advice}")
    return result_of(plan, trainee, seconds)


def result_of(plan: Plan, trainee: Trainee, seconds: dict[str, float]) -> TrainResult:
    """What a run that has taken all its steps gives; `seconds` beside those of training."""
    config, data, trainer = plan.config, plan.data, trainee.trainer
    return TrainResult(
        out=config.out,
        variant=data.sae.variant,
        unit=data.unit,
        steps=trainee.steps,
        samples=trainee.steps * data.batch,
        available=data.available,
        left_over=data.left_over,
        parameters=plan.parameters,
        harvested=dict(data.harvested),
        seconds={**seconds, "training": trainee.seconds},
        last=trainee.last,
        lr=trainer.peak,
        route=trainer.route.name,
        backends=backends_used(),
    )


def _duration(seconds: float) -> str:
    """A length of time for people: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
