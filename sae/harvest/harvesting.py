"""Activations of several places of a model into a store, in one pass: `sae harvest`.

    config = StoreConfig(harvest=HarvestConfig(model="demo", dataset="demo", site="resid_post.6,resid_post.9"), ...)
    harvest_store(config).tokens

Run again it continues where it stopped; with more tokens it appends.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import torch

from sae.base.device import pick_device, product_rate
from sae.base.launcher import rank_number, world_size
from sae.base.progress import Progress, StopSignal
from sae.base.storage import check_room
from sae.config import ConfigError, StoreConfig
from sae.data.columns import TEXT
from sae.data.documents import Documents, open_documents
from sae.harvest.attention import check_layout
from sae.harvest.beginning import Beginning, described, recorded, settle
from sae.harvest.identity import measured, store_identity
from sae.harvest.language_model import (
    LanguageModel,
    ModelSource,
    load_language_model,
    load_tokenizer,
    locate_model,
    skeleton,
)
from sae.harvest.model_shape import check_context, named_sites, parameters_up_to
from sae.harvest.opening import opening
from sae.harvest.precision import stored_bytes
from sae.harvest.rows import PLACE_BYTES
from sae.harvest.sites import Site
from sae.harvest.store import DiskStore, Worker, check_store, fill_store, stored_contexts, stored_precision
from sae.harvest.store_disk import read_store
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

    worker: Worker

    @property
    def identity(self) -> dict[str, Any]:
        """What the store records; see `sae.harvest.identity`."""
        data = self.documents.provenance
        return store_identity(self.config.harvest, self.source, self.sites, data, precision=self.precision)

    @property
    def tokens(self) -> int:
        """Tokens of this worker."""
        return self.worker.share(self.config.tokens)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token in the store."""
        return PLACE_BYTES + sum(stored_bytes(self.precision, site.width or 0) for site in self.sites)

    def estimate(self) -> dict[str, Any]:
        """Tokens, bytes and time; the device's speed is measured on one product."""
        rate = product_rate(self.device)
        return {
            "store": str(self.config.store),
            "sites": ", ".join(site.name for site in self.sites),
            "widths": [site.width for site in self.sites],
            "worker": f"{self.worker.number}/{self.worker.count}",
            "tokens": self.tokens,
            "precision": self.precision,
            "bytes_a_token": self.row_bytes,
            "store_bytes": self.tokens * self.row_bytes,
            "seconds": round(2 * self.layer_parameters * self.tokens / rate / 0.7, 1),
            "measured_gflops": round(rate / 1e9, 1),
            "device": str(self.device),
        }


class HarvestedStore(NamedTuple):
    """What a finished harvest gives."""

    store: str
    """Where it is."""
    sites: dict[str, int]
    """Site -> width of its activations."""
    worker: str
    """Which of how many workers this was."""
    tokens: int
    """Rows that this worker has stored."""
    harvested: int
    """Rows that this process added."""
    shards: int
    bytes_a_token: float
    """Of the shards' files, columns and headers included."""
    precision: str
    seconds: float
    """Wall time of the harvest, without loading the model."""
    attention: str
    """The route by which documents were kept apart: varlen, flex, masked or padded."""


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
    if settings.contexts == "auto":
        config = _with_contexts(config)
        settings = config.harvest
    precision = settings.store_precision
    if precision == "auto":
        precision = stored_precision(config.store) or "auto"
    parameters = parameters_up_to(model, sites)
    plan = HarvestPlan(config, source, sites, documents, device, parameters, precision, worker_of(config))
    if check_store(config.store, plan.identity):
        DiskStore(config.store, worker=plan.worker, verify=False)  # refuses another number of workers, or lost shards
    check_room(config.store, plan.tokens * plan.row_bytes)
    return plan


def _with_contexts(config: StoreConfig) -> StoreConfig:
    """`--contexts auto` as the number with which a store was begun; of a new store it stays auto until the first pass.

    Raises:
        ConfigError: several workers begin a store, whose devices would find different numbers.
    """
    begun = stored_contexts(config.store)
    if begun is not None:
        return dataclasses.replace(config, harvest=dataclasses.replace(config.harvest, contexts=begun))
    if worker_of(config).count > 1:
        raise ConfigError("--contexts auto: not with several workers, which must take one number; expected a number")
    return config


def worker_of(config: StoreConfig) -> Worker:
    """The worker that --worker or the launcher names; by default the only one."""
    if config.worker is not None:
        number, _, count = config.worker.partition("/")
        return Worker(int(number), int(count))
    return Worker(rank_number(), world_size())


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
        >>> settings = sae.HarvestConfig(model="model", dataset="texts.jsonl", layer=1, context=64)
        >>> result = sae.harvest_store(sae.StoreConfig(harvest=settings, store="store", tokens=2_000))
        >>> result.tokens, result.sites
        (2000, {'resid_post.1': 32})
    """
    plan = plan_harvest(config)
    with StopSignal() as stop, Progress() as progress:
        lm = load_language_model(plan.source, device=plan.device, precision=config.harvest.precision)
        store, harvest = _opened(plan, lm, progress)
        with store.writing():
            before, begun = store.rows, time.perf_counter()
            with progress.bar("Harvesting", plan.tokens, "tokens") as bar:

                def advance(rows: int) -> None:
                    bar.advance(rows)
                    stop.check(f"whole shards stay in {config.store}; run the same command again to continue")

                fill_store(store, harvest, tokens=plan.tokens, progress=advance)
            seconds = time.perf_counter() - begun
        if store.rows < plan.tokens:
            progress.say(f"The data set is used up: it gave {store.rows:,} of the {plan.tokens:,} tokens asked for.")
    shards = store.shards
    return HarvestedStore(
        store=str(config.store),
        sites=dict(store.identity["sites"]),
        worker=f"{plan.worker.number}/{plan.worker.count}",
        tokens=sum(store.part_rows),
        harvested=max(0, sum(store.part_rows) - before),
        shards=len(shards),
        bytes_a_token=round(sum(shard.bytes for shard in shards) / max(1, sum(shard.rows for shard in shards)), 2),
        precision=store.identity["precision"],
        seconds=round(seconds, 3),
        attention=harvest.attention.route,
    )


def _opened(plan: HarvestPlan, lm: LanguageModel, progress: Progress) -> tuple[DiskStore, Harvest]:
    """The store and the stream that fills it.

    How segments begin, the norm limits and the precision come from the store, or for a new one from the first pass over
    all documents: so they are the same for all workers, whichever comes first.
    """
    config, settings = plan.config, plan.config.harvest
    recorded_already = read_store(config.store, {})
    if recorded_already is not None and settings.bos == "auto":
        beginning = Beginning(recorded(recorded_already.get("beginning"), lm.tokenizer), f"as in {config.store}")
    else:
        beginning = settle(lm, settings, plan.documents)
    progress.say(beginning.line(lm.tokenizer))
    lm = lm._replace(beginning=beginning.ids)
    whole = Harvest(lm, plan.sites, plan.documents, settings, tell=progress.say)
    progress.say(opening(whole.documents, lm.tokenizer, settings, beginning=lm.beginning))
    progress.say(whole.attention.line())
    settings = whole.config
    plan = plan._replace(config=dataclasses.replace(config, harvest=settings))
    if plan.precision == "auto":
        precision, reason = whole.first_pass.precision
        progress.say(f"Activations are kept in {precision}: {reason}.")
        plan = plan._replace(precision=precision)
    identity = {**plan.identity, "beginning": described(lm)}
    if recorded_already is None:
        identity["measured"] = measured(whole)
    store = DiskStore(config.store, identity, worker=plan.worker)
    known = store.identity.get("measured")
    check_layout(config.store, known, whole.attention)
    limits = None if known is None else known["norm_limits"]
    shared = whole.documents if plan.worker.count == 1 else whole.documents.shared(*plan.worker)
    return store, Harvest(lm, plan.sites, shared, settings, norm_limits=limits, tell=progress.say)
