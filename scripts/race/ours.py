"""Runs of ours: what `sae train --data FILE` does, with a clock between the batches.

python -m scripts.race.ours FOLDER '["Sparsight topk", 0, 7.0]' ...
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import sae
from sae.base.progress import Progress, StopSignal
from sae.config import OptimConfig, SAEConfig, TensorDataConfig, TensorTrainConfig
from sae.data.batching import Batch
from sae.data.tensors import LEAST_RUNS, RUN, open_tensors
from sae.harvest.buffer import StoredBatches
from sae.training.run import train
from sae.training.tensors import TensorData
from scripts.race.member import Clock, Form, in_pieces, leave, parts
from scripts.race.settings import ENTRIES, Entry, Member, Race


def rows_of(folder: Path) -> TensorDataConfig:
    """The training file, as `sae train --data FILE` reads it.

    It sets some runs of neighbouring rows aside, here the one run that it must; no tool trains on these rows.
    """
    path = folder / "train.safetensors"
    rows = open_tensors(path).count
    run = max(1, min(RUN, rows // LEAST_RUNS))
    return TensorDataConfig(data=str(path), heldout=1 / (rows // run))


class ClockedBatches(StoredBatches):
    """Batches with a tick of a clock before each and behind the last."""

    clock: Clock

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        for batch in super().iterate(state):
            self.clock.tick()
            yield batch
        self.clock.tick()


class ClockedData(TensorData):
    """The file of activations, with a clock."""

    def __init__(self, config: TensorTrainConfig) -> None:
        super().__init__(config, torch.device("cpu"))
        self.clock = Clock()

    def batches(self, stop: StopSignal, progress: Progress) -> StoredBatches:
        batches = super().batches(stop, progress)
        batches.__class__, batches.clock = ClockedBatches, self.clock  # type: ignore[attr-defined]
        return batches


def train_ours(folder: Path, out: Path, race: Race, member: Member, entry: Entry) -> None:
    """Train, save, load, and leave what every member leaves."""
    run = out / "run"
    shutil.rmtree(run, ignore_errors=True)  # of a member that was killed
    config = TensorTrainConfig(
        rows=rows_of(folder),
        sae=SAEConfig(variant=entry.variant, width=race.width, k=race.k),
        optim=OptimConfig(lr=entry.rate(race.width, member.multiple), batch=race.batch),
        epochs=race.passes,
        out=run,
        seed=member.seed,
        device="cpu",
    )
    data = ClockedData(config)
    train(config, data)
    model = sae.load(run)
    form = Form(
        W_enc=model.W_enc,
        b_enc=model.b_enc,
        W_dec=model.dictionary.W,
        b_dec=model.dictionary.b,
        centred=True,
        threshold=getattr(model.code, "theta", None),
    )
    reconstructed = in_pieces(lambda x: model(x).reconstruction, parts(folder, "test"))
    leave(out, race, member, entry, form, reconstructed, data.clock, command="sae train --data FILE, defaults but --lr")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    race = Race.read(folder)
    torch.set_num_threads(race.threads)
    for member in map(Member.read, sys.argv[2:]):
        train_ours(folder, folder / member.name, race, member, ENTRIES[member.entry])
