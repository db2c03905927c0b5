"""Where a run's batches come from: the model itself, or a store that is filled first."""

from __future__ import annotations

import time
from typing import Any

import torch

from sae.base.files import read_json
from sae.base.progress import PLAIN_SECONDS, Progress, StopSignal
from sae.config import TrainConfig
from sae.data.packing import named_ids
from sae.harvest.beginning import Beginning, described, recorded, settle
from sae.harvest.buffer import LiveBatches, StoredBatches
from sae.harvest.language_model import LanguageModel, load_language_model
from sae.harvest.store import DiskStore, MemoryStore, Store, fill_store
from sae.harvest.stream import PERCENTILES, Harvest
from sae.models.language import find_variant
from sae.training.plan import Plan, with_precision
from sae.training.run_folder import read_record, run_lock


def live_batches(plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> LiveBatches:
    """Batches straight from the model."""
    config = plan.config
    spoken = time.perf_counter()
    rows_harvested = 0

    def advance(rows: int) -> None:
        nonlocal spoken, rows_harvested
        rows_harvested += rows
        # a buffer can take minutes to fill, while no step is taken
        if time.perf_counter() - spoken > PLAIN_SECONDS:
            spoken = time.perf_counter()
            progress.say(f"Harvested {rows_harvested:,} tokens.")
        stop.check(how_to_resume(config))

    return LiveBatches(
        harvest,
        [site.name for site in plan.inputs],
        [site.name for site in plan.targets],
        batch=plan.batch,
        tokens=config.tokens,
        buffer_bytes=config.buffer_mb << 20,
        dtype=getattr(torch, plan.precision),
        seed=config.seed,
        overlap=plan.device.type == "cuda",
        on_restart=lambda n: progress.say(f"The data set is used up: pass {n} over it begins."),
        progress=advance,
        pairs=find_variant(config.sae).neighbours,
    )


def load_model(plan: Plan, progress: Progress) -> LanguageModel:
    """The run's language model; what begins a segment is settled, or as the resumed run or the store has it.

    Raises:
        ModelError: it cannot be loaded, or does not read contexts of this length.
        ConfigError: the tokenizer has no token as --bos.
    """
    config = plan.config
    lm = load_language_model(plan.source, device=plan.device, precision=config.harvest.precision)
    identity = config.store / "identity.json" if config.store else None
    if config.resume:
        kept = read_record(config.out).get("harvest") or {}
        beginning = Beginning(recorded(kept.get("beginning"), lm.tokenizer), "as the run began")
    elif identity is not None and identity.is_file() and config.harvest.bos == "auto":
        beginning = Beginning(recorded(read_json(identity).get("beginning"), lm.tokenizer), f"as in {config.store}")
    else:
        beginning = settle(lm, config.harvest, plan.documents)
    progress.say(beginning.line(lm.tokenizer))
    return lm._replace(beginning=beginning.ids)


def store_identity(plan: Plan, lm: LanguageModel) -> dict[str, Any]:
    """What a store records; one from before beginnings were recorded has BOS, else CLS, first."""
    path = plan.config.store / "identity.json" if plan.config.store else None
    old = path is not None and path.is_file() and "beginning" not in read_json(path)
    if old and lm.beginning == named_ids(lm.tokenizer):
        return plan.store_identity
    return {**plan.store_identity, "beginning": described(lm)}


def open_store(plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> Store:
    """The run's activations, in memory or on disk, after harvesting what is missing."""
    config = plan.config
    if config.store is None:
        store = fill(MemoryStore(plan.store_identity, config.tokens), plan, harvest, stop, progress)
    else:
        config.store.mkdir(parents=True, exist_ok=True)
        with run_lock(config.store):
            store = fill(DiskStore(config.store, store_identity(plan, harvest.lm)), plan, harvest, stop, progress)
    if store.rows < config.tokens:
        progress.say(f"The data set is used up: it gave {store.rows:,} of the {config.tokens:,} tokens asked for.")
    return store


def stored_batches(plan: Plan, store: Store) -> StoredBatches:
    """Batches over a store."""
    return StoredBatches(
        store,
        [site.name for site in plan.inputs],
        [site.name for site in plan.targets],
        batch=plan.batch,
        epochs=plan.config.epochs,
        buffer_bytes=plan.config.buffer_mb << 20,
        seed=plan.config.seed,
        pairs=find_variant(plan.config.sae).neighbours,
    )


def fill(store: Store, plan: Plan, harvest: Harvest, stop: StopSignal, progress: Progress) -> Store:
    """Harvest what a store lacks, with a bar."""
    config = plan.config
    kept = f"harvested rows on disk stay in {config.store}; " if config.store else ""
    with progress.bar("Harvesting", config.tokens, "tokens") as bar:

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check(kept + how_to_resume(config))

        return fill_store(store, harvest, tokens=config.tokens, progress=advance)


def how_to_resume(config: TrainConfig) -> str:
    """What to type after an interruption."""
    return f"continue with: sae train --resume --out {config.out}"


def settled(plan: Plan, harvest: Harvest, progress: Progress) -> Plan:
    """Look at the first forward pass, tell of it, and settle the precision that activations wait in."""
    progress.say(norm_report(harvest))
    if plan.precision == "auto":
        precision, reason = harvest.first_pass.precision
        progress.say(f"Activations are kept in {precision}: {reason}.")
        return with_precision(plan, precision)
    if plan.config.harvest.store_precision == "auto":
        progress.say(f"Activations are kept in {plan.precision}, as they were before.")
    return plan


def norm_report(harvest: Harvest) -> str:
    """The percentiles of activation norms over the first forward pass, and what was left out for it."""
    lines = []
    for site, values in harvest.first_pass.norm_percentiles.items():
        shown = "  ".join(f"p{p} {value:.4g}" for p, value in zip(PERCENTILES, values, strict=True))
        limit = harvest.norm_limits.get(site)
        left_out = f"; tokens over {limit:.4g} are left out as sinks" if limit else ""
        lines.append(f"Activation norms at {site}: {shown}{left_out}.")
    return "\n".join(lines)
