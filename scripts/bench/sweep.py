"""Eight autoencoders from one live stream against one alone, in one process: seconds, tokens a second, their ratio.

    python scripts/bench/sweep.py [--json]
    python scripts/bench/sweep.py --model FOLDER --dataset FILE --layer 1 --context 64 --width 64 --batch 256

Rounds of one and eight alternate; figures are medians. A round is all of training but for loading the language model:
harvest, steps, and the saved autoencoders. The harvest is timed by itself as well: what is left of a round is the time
of the steps, and the bound on the ratio is what the steps would cost if sharing were free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sae.base.device import pick_device
from sae.base.progress import Progress, StopSignal
from sae.base.tables import number
from sae.config import HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.harvest.stream import Harvest
from sae.training.sweep import plan_sweep
from sae.training.together import Member, train_live

KS = (16, 20, 24, 28, 32, 40, 48, 56)
"""k of the eight members; the one alone has 32."""


def members_of(ks: tuple[int, ...], folder: Path, given: argparse.Namespace) -> list[Member]:
    """Members that differ in k alone."""
    harvest = HarvestConfig(model=given.model, dataset=given.dataset, layer=given.layer, context=given.context)
    configs = [
        TrainConfig(
            harvest=harvest,
            sae=SAEConfig(width=given.width, k=min(k, given.width)),
            optim=OptimConfig(batch=given.batch),
            tokens=given.tokens,
            buffer_mb=given.buffer_mb,
            out=folder / f"k{k}",
        )
        for k in ks
    ]
    return plan_sweep(configs).members


def trained(ks: tuple[int, ...], harvest: Harvest, given: argparse.Namespace) -> float:
    """Seconds in which members are trained from one stream and saved."""
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, contextlib.ExitStack() as open_folders:
        members = members_of(ks, Path(folder), given)
        stop, progress = open_folders.enter_context(StopSignal()), open_folders.enter_context(Progress())
        (view,) = harvest.views([members[0].data.sites])
        for member in members:
            open_folders.enter_context(member)
            member.data.use(view, progress)
        begun = time.perf_counter()
        train_live(members, harvest, stop, progress)
        seconds = time.perf_counter() - begun
        assert all(member.result is not None for member in members)
        return seconds


def harvested(harvest: Harvest, tokens: int) -> float:
    """Seconds of the harvest of so many training rows, with nothing trained."""
    begun, rows = time.perf_counter(), 0
    for step in harvest.batches():
        rows += harvest.trained_on(step.rows).size
        if rows >= tokens:
            break
    return (time.perf_counter() - begun) * tokens / rows


def measure(given: argparse.Namespace) -> dict[str, object]:
    """All figures as JSON values."""
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, Progress() as progress:
        harvest = members_of((32,), Path(folder), given)[0].data.open_harvest(progress)
    _ = harvest.first_pass
    trained((32,), harvest, given)  # compiles the kernels
    times: dict[str, list[float]] = {"one": [], "eight": [], "harvest": []}
    for _ in range(given.rounds):
        times["one"].append(trained((32,), harvest, given))
        times["eight"].append(trained(KS, harvest, given))
        times["harvest"].append(harvested(harvest, given.tokens))
    one, eight, alone = (statistics.median(times[name]) for name in ("one", "eight", "harvest"))
    return {
        "bench": "sweep",
        "device": str(pick_device("auto")),
        "threads": torch.get_num_threads(),
        "width": given.width,
        "tokens": given.tokens,
        "rounds": given.rounds,
        "harvest_tokens_s": round(given.tokens / alone, 1),
        "one_tokens_s": round(given.tokens / one, 1),
        "eight_tokens_s": round(given.tokens / eight, 1),
        "eight_over_one": round(eight / one, 3),
        "bound_eight_over_one": round((alone + 8 * max(0.0, one - alone)) / one, 3),
        "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
    }


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--tokens", type=int, default=65_536, help="of each round")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--buffer-mb", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="alternations of one and eight")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the runs; they are deleted")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args()
    figures = measure(given)
    if not given.json:
        for name, value in figures.items():
            print(f"{name:>24}  {number(value)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
