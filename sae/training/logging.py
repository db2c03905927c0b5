"""The metrics of a run: lines of `metrics.jsonl`, and Weights & Biases on request."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sae.base import disk
from sae.base.files import CorruptError, publish_file
from sae.config import RunConfig, to_json
from sae.runs.metrics import METRICS, lines_of

REMEDY = "restore it from a copy, or delete the file to resume without it"


class RunLog:
    """Appends JSON lines to the run's `metrics.jsonl`, and logs the same to Weights & Biases on request.

    A checkpoint records the file's length and hash (`state`). On resuming, the lines after it are dropped, which belong
    to steps that will be taken again.

    Args:
        config: of the run.
        resume_at: the step to resume at, 0 for a new run.
        before: `state` as the checkpoint has it; None where there is none, or one of an earlier version.

    Raises:
        CorruptError: lines that the checkpoint knows are missing or changed.
    """

    def __init__(self, config: RunConfig, *, resume_at: int, before: dict[str, Any] | None = None) -> None:
        self._path = config.out / METRICS
        kept = kept_lines(self._path, resume_at, before)
        publish_file(self._path, kept)
        self._bytes, self._hash = len(kept), hashlib.sha256(kept)
        rows = lines_of(self._path, kept)
        self.last: dict[str, Any] = rows[-1] if rows else {}
        self._wandb = _open_wandb(config, resume=resume_at > 0) if config.wandb != "off" else None

    def write(self, values: dict[str, Any]) -> None:
        """Add one line; `values` must include "step"."""
        self.last = values
        line = (json.dumps(values) + "\n").encode()
        disk.append(self._path, line)
        self._bytes += len(line)
        self._hash.update(line)
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in values.items() if name != "step"}, step=values["step"])

    def state(self) -> dict[str, Any]:
        """Length and hash of the file, which is on the disk when this returns."""
        disk.fsync(self._path)
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Finish the wandb run."""
        if self._wandb is not None:
            self._wandb.finish()


def kept_lines(path: Path, resume_at: int, before: dict[str, Any] | None) -> bytes:
    """The bytes of metrics.jsonl that a run resumed at a step keeps.

    Args:
        path: the file.
        resume_at: the step; 0 keeps nothing.
        before: `RunLog.state` as the checkpoint has it.

    Raises:
        CorruptError: lines that the checkpoint knows are missing or changed.
    """
    if resume_at == 0 or not path.exists():
        return b""
    content = path.read_bytes()
    if not before:
        return b"".join((json.dumps(v) + "\n").encode() for v in lines_of(path, content) if v["step"] <= resume_at)
    kept = content[: before["bytes"]]
    if hashlib.sha256(kept).hexdigest() != before["sha256"]:
        raise CorruptError(f"{path}: its lines up to step {resume_at} are not those that were written; {REMEDY}")
    return kept


class SilentLog:
    """What a process that is not the first of its job keeps of the metrics: the last line."""

    def __init__(self, config: RunConfig, *, resume_at: int, before: dict[str, Any] | None = None) -> None:
        del config, resume_at, before
        self.last: dict[str, Any] = {}

    def write(self, values: dict[str, Any]) -> None:
        """Remember a line."""
        self.last = values

    def state(self) -> dict[str, Any]:
        """Nothing: the first process has the file."""
        return {}

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
