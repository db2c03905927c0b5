"""The activations that all tools share: harvested once, split by document, with the order of every seed's batches.

    harvest(Race(), Path("runs/race"))

`train.safetensors` holds the training rows in the precision in which they were stored; `parts.safetensors` the
validation rows (documents behind the training ones), the test rows (held-out documents), the documents of all, and for
every seed the numbers of the rows that `sae train` takes, batch after batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.base.files import sha256_of
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, HarvestConfig, OptimConfig, SAEConfig, TensorTrainConfig, TrainConfig
from sae.data.cache import cache_dir
from sae.data.documents import open_documents
from sae.harvest.rows import Rows
from sae.harvest.sites import Site
from sae.harvest.stream import Harvest
from sae.training.tensors import SITE, TensorData, TensorStore
from sae.training.text import TextData, open_text
from scripts.race.ours import rows_of
from scripts.race.settings import Race

DATA = "data.json"


class Source(NamedTuple):
    """The language model, opened as `sae train` opens it."""

    data: TextData
    site: Site

    def heldout(self, **changes: Any) -> Harvest:
        """A harvest of the held-out documents, tokens sorted into kinds as in training."""
        settings, harvest = self.data.config.harvest, self.data.harvest
        assert harvest is not None
        documents = open_documents(settings.dataset, split="heldout", heldout=settings.heldout)
        changed = dataclasses.replace(settings, **changes)
        return Harvest(harvest.lm, [self.site], documents, changed, harvest.norm_limits)


def open_source(race: Race, folder: Path, progress: Progress) -> Source:
    """Load the language model and settle what a harvest of it needs; the demo's store is shared with `sae demo`."""
    shared = race.model == race.dataset == "demo"
    store = cache_dir() / "stores" / f"demo-resid_post.{race.layer}" if shared else folder / "store"
    config = TrainConfig(
        harvest=HarvestConfig(model=race.model, dataset=race.dataset, layer=race.layer, context=race.context),
        sae=SAEConfig(width=race.width, k=race.k),
        optim=OptimConfig(batch=race.batch),
        tokens=race.tokens + race.validation,
        store=store,
        out=folder / "unused",
        device="cpu",
    )
    data = open_text(config, torch.device("cpu"))
    # also where the store is complete: the held-out part is harvested with the same model
    data.use(data.open_harvest(progress), progress)
    return Source(data, data.inputs[0])


def harvest(race: Race, folder: Path) -> None:
    """Write what every member reads, unless it is there."""
    if (folder / DATA).exists():
        return
    with StopSignal() as stop, Progress() as progress:
        source = open_source(race, folder, progress)
        name = source.site.name
        store = source.data.open_store(stop, progress)
        if store.rows < race.tokens + race.validation:
            raise ConfigError(f"tokens: the data set gives {store.rows}; expected {race.tokens} + {race.validation}")
        train = store.read(range(race.tokens), [name])
        later = store.read(torch.arange(race.tokens, store.rows), [name])
        # the document in which the training rows end belongs to neither part
        validation = later.select((later.document != train.document[-1]).nonzero().squeeze(1))
        test = first_rows(source.heldout(), race.test, name, store.dtype, progress)
        save_file({"activations": train.activations[name].contiguous()}, folder / "train.safetensors")
        parts = {
            "train.document": train.document,
            "validation": validation.activations[name],
            "validation.document": validation.document,
            "test": test.activations[name],
            "test.document": test.document,
            **{f"order.{seed}": order_of(race, folder, seed) for seed in range(race.seeds)},
        }
        save_file({key: value.contiguous() for key, value in parts.items()}, folder / "parts.safetensors")
        record = {
            "site": name,
            "precision": str(store.dtype).removeprefix("torch."),
            "sha256": {part: sha256_of(folder / f"{part}.safetensors") for part in ("train", "parts")},
            "rows": {"train": train.size, "validation": validation.size, "test": test.size},
            "documents": {
                "train": len(train.document.unique()),
                "validation": len(validation.document.unique()),
                "test": len(test.document.unique()),
            },
            "steps": len(parts["order.0"]) // race.batch,
            **source.data.record()["harvest"],
        }
        (folder / DATA).write_text(json.dumps(record, indent=1))


def first_rows(harvest: Harvest, tokens: int, name: str, dtype: torch.dtype, progress: Progress) -> Rows:
    """The first rows of a harvest that belong in a training stream."""
    parts: list[Rows] = []
    left = tokens
    with progress.bar("Harvesting held-out documents", tokens, "tokens") as bar:
        for step in harvest.batches():
            rows = harvest.trained_on(step.rows).stored(dtype, [name], harvest.name_of).cpu().between(0, left)
            parts.append(rows)
            left -= rows.size
            bar.advance(rows.size)
            if left <= 0:
                break
    return Rows.join(parts)


class _Numbers(TensorStore):
    """The training file with each row's number in place of its activations."""

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        none = torch.zeros(len(rows), dtype=torch.int8)
        return Rows({SITE: self.part.numbers(rows).unsqueeze(1)}, none, none, none, none, none)


def order_of(race: Race, folder: Path, seed: int) -> Tensor:
    """Numbers int32 [steps * batch] of the training file's rows, in the order in which `sae train` takes them."""
    config = TensorTrainConfig(
        rows=rows_of(folder),
        sae=SAEConfig(width=race.width, k=race.k),
        optim=OptimConfig(batch=race.batch),
        epochs=race.passes,
        out=folder / "unused",
        seed=seed,
        device="cpu",
    )
    data = TensorData(config, torch.device("cpu"))
    batches = data.batches(None, None)  # type: ignore[arg-type] - a file needs no harvest that could be stopped
    batches.store = _Numbers(data.part)  # type: ignore[assignment]
    return torch.cat([batch.input.squeeze(1) for batch in batches.iterate(None)]).int()
