"""The metrics of a run: lines of `metrics.jsonl`, and Weights & Biases on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError, publish_file
from sae.config import RunConfig, to_json

METRICS = "metrics.jsonl"


class RunLog:
    """Appends JSON lines to the run's `metrics.jsonl`, and logs the same to Weights & Biases on request.

    On resuming it first drops the lines of steps that will be taken again.
    """

    def __init__(self, config: RunConfig, *, resume_at: int) -> None:
        path = config.out / METRICS
        kept = [values for values in read_metrics(config.out) if values["step"] <= resume_at]
        text = "".join(json.dumps(values) + "\n" for values in kept)
        publish_file(path, text.encode())
        self.last: dict[str, Any] = kept[-1] if kept else {}
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._wandb = _open_wandb(config, resume=resume_at > 0) if config.wandb != "off" else None

    def write(self, values: dict[str, Any]) -> None:
        """Add one line; `values` must include "step"."""
        self.last = values
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in values.items() if name != "step"}, step=values["step"])

    def close(self) -> None:
        """Close the file and finish the wandb run."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


class SilentLog:
    """What a process that is not the first of its job keeps of the metrics: the last line."""

    def __init__(self, config: RunConfig, *, resume_at: int) -> None:
        del config, resume_at
        self.last: dict[str, Any] = {}

    def write(self, values: dict[str, Any]) -> None:
        """Remember a line."""
        self.last = values

    def close(self) -> None:
        """Nothing is open."""


def _open_wandb(config: RunConfig, *, resume: bool) -> Any:
    import wandb

    name = config.out.resolve().name
    return wandb.init(
        project="sparsight",
        name=name,
        dir=str(config.out),
        mode="online" if config.wandb == "online" else "offline",
        config=to_json(config),
        id=f"sparsight-{name}-{config.seed}",
        resume="allow" if resume else None,
        reinit="create_new",  # beside the runs of a sweep's other members
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without a last one that a kill cut short; none if there is no such file.

    Raises:
        CorruptError: a line before the last cannot be read.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")  # a kill or a full disk can leave half a line at the end
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise CorruptError(f"{path}: a line is no JSON ({error}); delete the file to resume without it") from error
