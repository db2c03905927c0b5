"""What a store costs: bytes a token, read rate against copying its files, training from it against from memory, mixing.

    python scripts/bench/store.py [--json]
    python scripts/bench/store.py --quality runs/int8      # also trains and evaluates on float16 and int8 stores

The store holds random rows of width 576 in documents of 300, several times the buffer. Reading is an epoch of
`StoredBatches`: pages gathered, rows shuffled and cut into batches, with nothing done to them. It is compared with
copying the shards' files on the same disk, block by block, in alternating rounds: warm, an epoch after the first, with
the files in the page cache and verified; and cold, dropped from it, with everything verified by SHA-256. Figures are
medians. Bytes are those of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae.base.device import pick_device
from sae.base.tables import number
from sae.config import EvalConfig, HarvestConfig, OptimConfig, SAEConfig, StoreConfig, TrainConfig
from sae.data.packing import BEGINNING
from sae.harvest.buffer import StoredBatches
from sae.harvest.order import mixing
from sae.harvest.rows import Rows
from sae.harvest.store import SHARD_ROWS, DiskStore, MemoryStore, Store
from sae.models.language import recipe_of
from sae.training.trainer import Trainer

SITE, DOCUMENT = "resid_post.0", 300
BLOCK = 1 << 20
LAYER, WIDTH, K, TOKENS, EPOCHS = 9, 4608, 32, 200_000, 3
"""The task on which int8 is compared with float16."""


def rows_of(first: int, count: int, width: int, dtype: torch.dtype) -> Rows:
    """Random rows, with some columns and entries far larger than the others, as language models have."""
    draw = torch.Generator().manual_seed(first)
    x = torch.randn(count, width, generator=draw)
    x[:, width // 3] += 60
    x[::50, width // 2] = 400
    ids = torch.arange(first, first + count)
    columns = [torch.zeros(count, dtype=torch.int32) for _ in range(2)]
    position = (ids % DOCUMENT).int()
    return Rows({SITE: x.to(dtype)}, columns[0], ids // DOCUMENT, position, columns[1], torch.zeros(count).char())


def filled(store: Store, rows: int, width: int, shard: int) -> Store:
    for first in range(0, rows, shard):
        store.append(rows_of(first, min(shard, rows - first), width, store.dtype), BEGINNING)
    return store


def identity(width: int, precision: str) -> dict[str, Any]:
    return {"sites": {SITE: width}, "precision": precision}


def seconds_of(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def files_of(store: DiskStore) -> list[Path]:
    return [Path(str(store.place)) / shard.name for shard in store.shards]


def copied(files: list[Path], target: Path) -> None:
    """Copy files one after the other through one block of memory."""
    block = memoryview(bytearray(BLOCK))
    for path in files:
        with open(path, "rb", buffering=0) as source, open(target, "wb", buffering=0) as copy:
            while count := source.readinto(block):
                copy.write(block[:count])


def drop(files: list[Path]) -> None:
    """Let the page cache forget files."""
    for path in files:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def batches_of(store: Store, batch: int, buffer_mb: int) -> StoredBatches:
    return StoredBatches(store, [SITE], [SITE], batch=batch, epochs=1, buffer_bytes=buffer_mb << 20, seed=0)


def exhaust(batches: StoredBatches) -> None:
    for _ in batches.iterate(None):
        pass


def read_rates(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """MB/s of copying and of reading, and their ratio, with warm files and cold ones."""
    store = DiskStore(folder / "float16")
    files, size = files_of(store), sum(shard.bytes for shard in store.shards)
    for name in ("warm", "cold"):
        copies, reads = [], []
        batches = batches_of(store, arguments.batch, arguments.buffer_mb)
        exhaust(batches)
        for _ in range(arguments.rounds):
            if name == "cold":
                batches = batches_of(DiskStore(folder / "float16", verify=False), arguments.batch, arguments.buffer_mb)
            for act, seconds in ((partial(copied, files, folder / "copy"), copies), (partial(exhaust, batches), reads)):
                if name == "cold":
                    drop(files)
                seconds.append(seconds_of(act))
        copy, read = (size / statistics.median(seconds) / 1e6 for seconds in (copies, reads))
        yield f"copy_mb_s_{name}", round(copy, 1)
        yield f"read_mb_s_{name}", round(read, 1)
        yield f"read_over_copy_{name}", round(read / copy, 4)


def training_rates(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of training from the store and from memory, and their ratio."""
    rows, width = arguments.training_rows, arguments.width
    memory = filled(MemoryStore(identity(width, "float16"), rows), rows, width, SHARD_ROWS)
    disk = DiskStore(folder / "float16")
    disk.limit = rows
    seconds: dict[str, list[float]] = {"memory": [], "store": []}
    config = SAEConfig(width=arguments.latents, k=K)
    for _ in range(arguments.rounds):
        for name, store in (("memory", memory), ("store", disk)):
            batches = batches_of(store, arguments.batch, arguments.buffer_mb)
            trainer = Trainer(
                recipe_of(config, [width]), OptimConfig(), steps=batches.steps + 1, dead_after=10**9, auxk=1,
                device=pick_device("auto"), seed=0,
            )  # fmt: skip
            first = next(batches.iterate(None))
            trainer.initialise([first.input], [first.target])
            trainer.step(first.input, first.target)  # compiles the kernels

            def train(batches: StoredBatches = batches, trainer: Trainer = trainer) -> None:
                for batch in batches.iterate(None):
                    trainer.step(batch.input, batch.target)

            seconds[name].append(seconds_of(train))
    memory_rate, store_rate = (rows / statistics.median(values) for values in seconds.values())
    return {
        "training_from_memory_tokens_s": round(memory_rate, 1),
        "training_from_store_tokens_s": round(store_rate, 1),
        "training_store_over_memory": round(store_rate / memory_rate, 4),
    }


def quality(out: Path) -> dict[str, Any]:
    """FVU and delta CE of the same autoencoder trained from a float16 and from an int8 store of the demo."""
    from sae.evaluation.run import evaluate
    from sae.harvest.harvesting import harvest_store
    from sae.training.run import train

    figures: dict[str, Any] = {}
    reports = []
    for precision in ("float16", "int8"):
        harvest = HarvestConfig(model="demo", dataset="demo", layer=LAYER, store_precision=precision)
        stored = harvest_store(StoreConfig(harvest=harvest, store=out / f"store-{precision}", tokens=TOKENS))
        figures[f"demo_bytes_a_token_{precision}"] = stored.bytes_a_token
        run = TrainConfig(
            harvest=harvest, sae=SAEConfig(width=WIDTH, k=K), tokens=TOKENS, epochs=EPOCHS, out=out / precision,
            store=out / f"store-{precision}",
        )  # fmt: skip
        train(run)
        reports.append(evaluate(run.out, EvalConfig()))
    exact, rounded = (DiskStore(out / f"store-{precision}") for precision in ("float16", "int8"))
    site = f"resid_post.{LAYER}"
    x, y = (store.read(range(min(65_536, store.rows)), [site]).activations[site].double() for store in (exact, rounded))
    figures["int8_rounding_fvu"] = float((x - y).square().sum() / (x - x.mean(0)).square().sum())
    fvu, ce = ([r["fvu"]["value"] for r in reports], [r["downstream"]["delta_ce"] for r in reports])
    return {
        **figures,
        "fvu_float16": fvu[0],
        "fvu_int8": fvu[1],
        "fvu_change": fvu[1] - fvu[0],
        "delta_ce_float16": ce[0],
        "delta_ce_int8": ce[1],
        "delta_ce_change": ce[1]["value"] - ce[0]["value"],
        "delta_ce_half_interval": (ce[0]["high"] - ce[0]["low"]) / 2,
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures as JSON values."""
    figures: dict[str, Any] = {
        "bench": "store",
        "rows": arguments.rows,
        "width": arguments.width,
        "batch": arguments.batch,
        "buffer_mb": arguments.buffer_mb,
        "threads": torch.get_num_threads(),
    }
    few = min(arguments.rows, SHARD_ROWS)
    for precision in ("float32", "bfloat16", "float16", "int8"):
        count = arguments.rows if precision == "float16" else few
        store = DiskStore(folder / precision, identity(arguments.width, precision))
        filled(store, count, arguments.width, arguments.shard_rows)
        total = sum(path.stat().st_size for path in (folder / precision).rglob("*") if path.is_file())
        figures[f"bytes_a_token_{precision}"] = round(total / store.rows, 2)
    figures["int8_over_float16"] = round(figures["bytes_a_token_int8"] / figures["bytes_a_token_float16"], 4)
    figures |= dict(read_rates(folder, arguments))
    figures |= training_rates(folder, arguments)
    store = DiskStore(folder / "float16")
    batches = batches_of(store, arguments.batch, arguments.buffer_mb)
    measured = mixing(list(batches.numbers(0)), store.places().document)
    figures["blocks"] = batches.blocks
    figures["document_collisions_over_uniform"] = round(measured.collisions, 3)
    figures["order_correlation"] = round(measured.correlation, 4)
    return figures


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--rows", type=int, default=1_200_000, help="rows of the float16 store")
    parser.add_argument("--width", type=int, default=576, help="width of a row")
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS, help="rows of a shard")
    parser.add_argument("--batch", type=int, default=2048, help="rows of a batch")
    parser.add_argument("--buffer-mb", type=int, default=256, help="memory of the shuffle buffer in MiB")
    parser.add_argument("--training-rows", type=int, default=200_000, help="rows of a round of training")
    parser.add_argument("--latents", type=int, default=WIDTH, help="width of the trained autoencoder")
    parser.add_argument("--rounds", type=int, default=5, help="alternations")
    parser.add_argument("--folder", type=Path, help="disk to measure, by default that of temporary files")
    parser.add_argument("--quality", type=Path, help="new folder: also train and evaluate the demo's task on int8")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        figures = measure(folder, arguments)
    finally:
        shutil.rmtree(folder)
    if arguments.quality is not None:
        figures |= quality(arguments.quality)
    if not arguments.json:
        for name, value in figures.items():
            print(f"{name:36} {number(value) if isinstance(value, int | float) else value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
