"""What a training run of any tool needs and leaves: batches with a clock, and the saved form in plain tensors.

Runs in both environments; imports neither `sae` nor another tool.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scripts.race.settings import TOOLS, Course, Entry, Member, Race

FORM, TRAINED, RECONSTRUCTED = "form.safetensors", "trained.json", "reconstructed.safetensors"
ROWS_AT_ONCE = 4096


def peak_mib() -> int:
    """The most memory that this process has had at once. On Linux `ru_maxrss` begins with what its parent had."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


class Clock:
    """Wall and processor time between batches, a step with the gathering of its rows; the process's peak memory."""

    def __init__(self) -> None:
        self._peak = 0
        self._wall: list[float] = []
        self._processor: list[float] = []

    def tick(self) -> None:
        """A batch is asked for, or the last step is done."""
        self._wall.append(time.perf_counter())
        self._processor.append(time.process_time())
        self._peak = max(self._peak, peak_mib())

    def record(self) -> dict[str, float]:
        """Medians in milliseconds, without the first two steps, which compile and warm up; MiB up to the last step."""

        def median(ticks: list[float]) -> float:
            steps = [1e3 * (b - a) for a, b in itertools.pairwise(ticks)]
            return round(statistics.median(steps[2:] or steps), 1)

        seconds = round(self._wall[-1] - self._wall[0], 1)
        return {
            "step_ms": median(self._wall),
            "step_processor_ms": median(self._processor),
            "seconds": seconds,
            "peak_mib": self._peak,
        }


class Batches:
    """The training batches of one seed, in the order in which ours takes them; can be iterated again and again."""

    def __init__(self, folder: Path, seed: int, batch: int) -> None:
        with safe_open(folder / "train.safetensors", framework="pt") as file:
            self._rows = file.get_tensor("activations")
        with safe_open(folder / "parts.safetensors", framework="pt") as file:
            self._order = file.get_tensor(f"order.{seed}").long()
        self.batch, self.steps, self.dim = batch, len(self._order) // batch, self._rows.shape[1]
        self.clock = Clock()

    def __getitem__(self, step: int) -> Tensor:
        """Rows [batch, d], float32, of one step."""
        return self._rows[self._order[step * self.batch : (step + 1) * self.batch]].float()

    def __iter__(self) -> Iterator[Tensor]:
        return (self[step] for step in range(self.steps))

    def timed(self) -> Iterator[Tensor]:
        """All batches, with a tick of the clock before each and behind the last."""
        for step in range(self.steps):
            self.clock.tick()
            yield self[step]
        self.clock.tick()


class Form(NamedTuple):
    """A saved form in plain tensors: f = code(W_enc x + b_enc), or of x - b_dec where centred; x̂ = f W_dec + b_dec."""

    W_enc: Tensor
    """[F, d]."""
    b_enc: Tensor
    W_dec: Tensor
    """[F, d]."""
    b_dec: Tensor
    centred: bool
    """Whether b_dec is subtracted from the inputs."""
    threshold: Tensor | None = None
    """[F]: values over it are kept; None for the k largest."""


def parts(folder: Path, name: str) -> Tensor:
    """Rows of a part for measuring, float32 [n, d]."""
    with safe_open(folder / "parts.safetensors", framework="pt") as file:
        return file.get_tensor(name).float()


def in_pieces(function: Any, x: Tensor) -> Tensor:
    """A function of rows, applied to as many rows at once as memory takes."""
    with torch.no_grad():
        return torch.cat([function(piece) for piece in x.split(ROWS_AT_ONCE)])


def leave(
    out: Path,
    race: Race,
    member: Member,
    entry: Entry,
    form: Form,
    reconstructed: Tensor,
    clock: Clock,
    **settings: Any,
) -> None:
    """Write what a member leaves; `trained.json` last, by which it counts as finished.

    Args:
        reconstructed: x̂ of the test rows by the tool's own object, loaded from what it saved.
        settings: how the tool was set, for the record.
    """
    tensors = {"W_enc": form.W_enc, "b_enc": form.b_enc, "W_dec": form.W_dec, "b_dec": form.b_dec}
    tensors |= {} if form.threshold is None else {"threshold": form.threshold}
    save_file({name: t.detach().float().contiguous().clone() for name, t in tensors.items()}, out / FORM)
    save_file({"test": reconstructed.contiguous()}, out / RECONSTRUCTED)
    record = {
        **member._asdict(),
        "tool": entry.tool,
        "variant": entry.variant,
        "version": importlib.metadata.version(TOOLS[entry.tool]),
        "lr": entry.rate(race.width, member.multiple),
        "centred": form.centred,
        "code": "topk" if form.threshold is None else "jumprelu",
        **clock.record(),
        "threads": torch.get_num_threads(),
        "settings": settings,
    }
    (out / TRAINED).write_text(json.dumps(record, indent=1))


def course_of(race: Race, batches: Batches) -> Course:
    """The shares of this run."""
    return Course(batches.steps, race.batch)
