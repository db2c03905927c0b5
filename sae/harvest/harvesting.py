"""Activations of several places of a model into a store, in one pass: `sae harvest`.

    config = StoreConfig(harvest=HarvestConfig(model="demo", dataset="demo", site="resid_post.6,resid_post.9"), ...)
    harvest_store(config).tokens

Run again it continues where it stopped; with more tokens it appends.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.base.device import pick_device, product_rate
from sae.base.progress import Progress, StopSignal
from sae.config import StoreConfig
from sae.data.columns import TEXT
from sae.data.documents import Documents, open_documents
from sae.harvest.beginning import described, settle
from sae.harvest.identity import store_identity
from sae.harvest.language_model import ModelSource, load_language_model, load_tokenizer, locate_model, skeleton
from sae.harvest.model_shape import check_context, named_sites, parameters_up_to
from sae.harvest.opening import opening
from sae.harvest.rows import PLACE_BYTES
from sae.harvest.sites import Site
from sae.harvest.store import DiskStore, check_store, fill_store, stored_precision
from sae.harvest.stream import Harvest, prepared


class HarvestPlan(NamedTuple):
    """A checked harvest, before weights are read."""

    config: StoreConfig
    source: ModelSource
    sites: list[Site]
    documents: Documents
    device: torch.device
    layer_parameters: int
    """Parameters of the language model that run for a token."""
    precision: str
    """In which activations are stored; auto until the first forward pass."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the store records; see `sae.harvest.identity`."""
        data = self.documents.provenance
        return store_identity(self.config.harvest, self.source, self.sites, data, precision=self.precision)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token in the store; what auto chooses takes two a number nearly always."""
        itemsize = 2 if self.precision == "auto" else getattr(torch, self.precision).itemsize
        return PLACE_BYTES + sum(site.width or 0 for site in self.sites) * itemsize

    def estimate(self) -> dict[str, Any]:
        """Tokens, bytes and time; the device's speed is measured on one product."""
        tokens, rate = self.config.tokens, product_rate(self.device)
        return {
            "store": str(self.config.store),
            "sites": ", ".join(site.name for site in self.sites),
            "widths": [site.width for site in self.sites],
            "tokens": tokens,
            "precision": self.precision,
            "bytes_a_token": self.row_bytes,
            "store_bytes": tokens * self.row_bytes,
            "seconds": round(2 * self.layer_parameters * tokens / rate / 0.7, 1),
            "measured_gflops": round(rate / 1e9, 1),
            "device": str(self.device),
        }


class HarvestedStore(NamedTuple):
    """What a finished harvest gives."""

    store: str
    """Where it is."""
    sites: dict[str, int]
    """Site -> width of its activations."""
    tokens: int
    """Rows that the store holds."""
    harvested: int
    """Rows that this process added."""
    precision: str
    seconds: float
    """Wall time of the harvest, without loading the model."""


def plan_harvest(config: StoreConfig) -> HarvestPlan:
    """Check the settings, the model's shape, the data set and the store that is there, without reading weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    device, settings = pick_device(config.device), config.harvest
    source = locate_model(settings.model, trust_remote_code=settings.trust_remote_code)
    model = skeleton(source)
    check_context(settings, model)
    sites = named_sites(model, "site", settings.site, settings.layer)
    documents = open_documents(
        settings.dataset,
        text_field=settings.text_field,
        split="train",
        heldout=settings.heldout,
        roles=settings.roles,
    )
    if documents.kind != TEXT:
        documents = prepared(documents, load_tokenizer(source), model, settings)
    precision = settings.store_precision
    if precision == "auto":
        precision = stored_precision(Path(config.store)) or "auto"
    parameters = parameters_up_to(model, sites)
    plan = HarvestPlan(config, source, sites, documents, device, parameters, precision)
    check_store(Path(config.store), plan.identity)
    return plan


def dry_run(config: StoreConfig) -> dict[str, Any]:
    """What a harvest would do: places, tokens, bytes, seconds. Raises as `plan_harvest`."""
    return plan_harvest(config).estimate()


def harvest_store(config: StoreConfig) -> HarvestedStore:
    """Harvest until the store holds `config.tokens` tokens or the data end; a store that is there is continued.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; nothing was written.
        CorruptError: the store is damaged; names the file.
        Interrupted: SIGINT or SIGTERM; whole shards stay, and the message says how to continue.

    Example:
        >>> import sae
        >>> settings = sae.HarvestConfig(model="model", dataset="texts.jsonl", site="resid_post.0,mlp_out.1")
        >>> result = sae.harvest_store(sae.StoreConfig(harvest=settings, store="store", tokens=2_000))
        >>> result.tokens, result.sites
        (2000, {'resid_post.0': 32, 'mlp_out.1': 32})
    """
    plan = plan_harvest(config)
    with StopSignal() as stop, Progress() as progress:
        lm = load_language_model(plan.source, device=plan.device, precision=config.harvest.precision)
        beginning = settle(lm, config.harvest, plan.documents)
        progress.say(beginning.line(lm.tokenizer))
        lm = lm._replace(beginning=beginning.ids)
        harvest = Harvest(lm, plan.sites, plan.documents, config.harvest, tell=progress.say)
        progress.say(opening(harvest.documents, lm.tokenizer, config.harvest, beginning=lm.beginning))
        if plan.precision == "auto":
            precision, reason = harvest.first_pass.precision
            progress.say(f"Activations are kept in {precision}: {reason}.")
            plan = plan._replace(precision=precision)
        store = DiskStore(Path(config.store), {**plan.identity, "beginning": described(lm)})
        before, begun = store.rows, time.perf_counter()
        with progress.bar("Harvesting", config.tokens, "tokens") as bar:

            def advance(rows: int) -> None:
                bar.advance(rows)
                stop.check(f"whole shards stay in {config.store}; run the same command again to continue")

            fill_store(store, harvest, tokens=config.tokens, progress=advance)
        seconds = time.perf_counter() - begun
        if store.rows < config.tokens:
            progress.say(f"The data set is used up: it gave {store.rows:,} of the {config.tokens:,} tokens asked for.")
    return HarvestedStore(
        store=str(config.store),
        sites=dict(store.identity["sites"]),
        tokens=store.rows,
        harvested=max(0, store.rows - before),
        precision=store.identity["precision"],
        seconds=round(seconds, 3),
    )
