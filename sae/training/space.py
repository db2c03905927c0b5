"""What a run needs of memory, disk and time, and whether there is as much."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, NamedTuple

from sae.base.device import available_memory
from sae.config import ConfigError
from sae.training.optimizers import moment_bytes, parameters_of
from sae.training.plan import Plan
from sae.training.run_folder import check_disk
from sae.training.weights import matrices

UNTIMED, TIMED = 3, 7  # steps by which a run's time is estimated: the first ones compile and allocate


class Trial(NamedTuple):
    """A few steps that were taken and thrown away."""

    route: str
    seconds: float
    """How long all steps of the run will take."""


def estimate(plan: Plan) -> dict[str, Any]:
    """Shapes, steps, memory, disk and time of a run, as a dry run shows them.

    The time is that of a trial; where batches would have to be harvested, it comes from the speed of the device on one
    product, and no weights are allocated.
    """
    data, parameters = plan.data, plan.parameters
    known = data.estimate()
    steps = known.pop("steps", data.samples // data.batch)
    memory, disk, seconds = known.pop("memory_bytes"), known.pop("disk_bytes", {}), known.pop("seconds", {})
    trial = try_steps(plan)
    if trial is not None:
        seconds = {"training": round(trial.seconds, 3)}
    return {
        **known,
        "dictionary": list(plan.recipe.model.dictionary.W.shape),
        "parameters": parameters,
        "epochs": data.epochs,
        "steps": steps,
        **({} if trial is None else {"route": trial.route}),
        "memory_bytes": {**memory, "weights_gradients_moments": weight_bytes(plan)},
        "disk_bytes": {"run": run_bytes(plan), **disk},
        "seconds": seconds,
        "device": str(plan.device),
    }


def try_steps(plan: Plan) -> Trial | None:
    """Take a few steps and throw them away; None where their batches would have to be harvested."""
    inputs = list(plan.data.first_inputs(UNTIMED + TIMED))
    if not inputs:
        return None
    steps = plan.data.samples // plan.data.batch
    trainer = plan.trainer(steps)
    trainer.initialise(inputs, inputs)
    taken = []
    for x in inputs:
        begun = time.perf_counter()
        trainer.step(x, x)
        taken.append(time.perf_counter() - begun)
    return Trial(trainer.route.name, median(taken[UNTIMED:] or taken) * steps)


def check_space(plan: Plan) -> None:
    """Refuse what cannot fit: weights or activations in memory, a batch in the buffer, a run or store on its disk.

    Raises:
        ConfigError: names the flag, what is needed and what is free.
    """
    weights, available = weight_bytes(plan), available_memory(plan.device)
    if weights > available:
        raise ConfigError(
            f"--width {plan.data.sae.width}: weights, gradients and two moments take {weights >> 20} MiB of memory, "
            f"{available >> 20} MiB are free on the {plan.device.type}"
        )
    plan.data.check_space()
    check_disk("--out", plan.config.out, run_bytes(plan))


def weight_bytes(plan: Plan) -> int:
    """Bytes of memory that weights, gradients and two moments take."""
    return 4 * plan.parameters + _state_bytes(plan)


def run_bytes(plan: Plan) -> int:
    """Bytes of the run folder: the saved weights, and checkpoints of weights and two moments."""
    return 4 * plan.parameters + _state_bytes(plan) * (plan.config.keep_checkpoints + 1)


def _state_bytes(plan: Plan) -> int:
    """Bytes of weights and two moments in the formats that the settings ask for."""
    model, optim = plan.recipe.model, plan.data.optim
    weights = 4 * plan.parameters
    if optim.weights == "bfloat16":
        weights -= 2 * sum(matrix.numel() for matrix in matrices(model))
    return weights + moment_bytes(parameters_of(model), optim)
