"""Activations of a language model as rows: the demo model's, or those a run was trained on.

rows = language_rows(None, tokens=40_000, quick=False, scratch=out / "runs" / "harvest")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.device import pick_device
from sae.base.progress import Progress, StopSignal
from sae.config import HarvestConfig, TrainConfig
from sae.data.cache import cache_dir
from sae.data.demo import FetchError
from sae.harvest.store import DiskStore, Store
from sae.harvest.stream import Harvest
from sae.models.autoencoder import Autoencoder
from sae.runs.text import Run, open_run
from sae.training.plan import make_plan
from sae.training.space import check_space
from sae.training.text import TextData

LAYER = 9
HELDOUT_SHARE = 0.1  # of the tokens: the last documents
LEAST = 2000  # tokens needed for a comparison


class LanguageRows(NamedTuple):
    """Activations, split by document."""

    source: str
    train: Tensor
    """float32 [n, d]."""
    heldout: Tensor
    """float32 [m, d], of other documents."""
    provenance: dict[str, Any]
    """JSON values."""
    model: Autoencoder | None = None
    """The model of the run that was named."""


def language_rows(run: str | None, *, tokens: int, quick: bool, scratch: Path) -> LanguageRows | str:
    """Activations at the site of `run`, else of the demo model's layer 9; or the reason why there are none.

    The demo's are harvested into the store of `sae demo` and read from there; if `quick`, nothing is fetched or
    harvested, and only an existing store is read.

    Args:
        run: a run folder on a language model.
        tokens: rows wanted, held-out ones included.
        quick: see above.
        scratch: a free folder name; nothing is written to it.
    """
    if run is not None:
        return _of_run(open_run(run), tokens)
    folder = cache_dir() / "stores" / f"demo-resid_post.{LAYER}"
    if quick:
        if not (folder / "identity.json").exists():
            return f"there is no harvest of the demo model in {folder}, and a quick report fetches none"
        return _of_store(DiskStore(folder), tokens)
    try:
        return _of_store(_demo_store(folder, tokens, scratch), tokens)
    except FetchError as error:
        return str(error)


def _demo_store(folder: Path, tokens: int, scratch: Path) -> Store:
    """The demo's store, harvested further if it has too few rows."""
    harvest = HarvestConfig(model="demo", dataset="demo", layer=LAYER)
    plan = make_plan(TrainConfig(harvest=harvest, out=scratch, tokens=tokens, store=folder, device="cpu"))
    check_space(plan)
    data = plan.data
    assert isinstance(data, TextData)
    if data.precision != "auto":  # there is a store
        store = DiskStore(folder, data.store_identity)
        if store.rows >= tokens:
            return store
    with StopSignal() as stop, Progress() as progress:
        data.prepare(progress)
        return data.open_store(stop, progress)


def _of_store(store: Store, tokens: int) -> LanguageRows | str:
    rows = range(min(tokens, store.rows))
    if len(rows) < LEAST:
        return f"the store of the demo model's activations has {store.rows} tokens only"
    (site,) = store.identity["sites"]
    stored = store.read(rows, [site])
    x, document = stored.activations[site].float(), stored.document
    # documents are in order: the one in which the held-out share begins is the first held out
    heldout = document >= document[round((1 - HELDOUT_SHARE) * len(rows))]
    source = f"{store.identity['model']} model, {site}"
    return LanguageRows(source, x[~heldout], x[heldout], {**store.identity, "tokens": len(rows)})


def _of_run(run: Run, tokens: int) -> LanguageRows:
    device = pick_device("cpu")
    lm = run.load_language_model(device)
    count = max(1, round(HELDOUT_SHARE * tokens))
    train = _collected(run, run.harvest(lm, split="train"), tokens - count)
    heldout = _collected(run, run.harvest(lm, split="heldout"), count)
    source = f"{run.config.harvest.model}, {', '.join(site.name for site in run.inputs)}"
    weights = run.record["autoencoder"]["sha256"]
    provenance = {"run": str(run.folder), "weights": weights, "train": len(train), "heldout": len(heldout)}
    return LanguageRows(source, train, heldout, provenance, None if run.model.transcodes else run.model)


def _collected(run: Run, harvest: Harvest, count: int) -> Tensor:
    """The first `count` rows that a training run would see, or all there are."""
    parts: list[Tensor] = []
    for step in harvest.batches():
        parts.append(run.inputs_of(harvest.trained_on(step.rows)))
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)[:count]
