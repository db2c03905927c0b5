"""Many runs from one harvest: the activations that all of them need are collected once and shared.

results = sweep([TrainConfig(..., out=Path("runs/a")), TrainConfig(..., out=Path("runs/b"))])
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, TrainConfig, to_json
from sae.harvest.opening import opening
from sae.harvest.store import DiskStore
from sae.harvest.stream import Harvest
from sae.training.batches import fill, load_model, settled, store_identity, stored_batches
from sae.training.plan import Plan, make_plan, widths, with_precision
from sae.training.run import TrainResult, begin_record, fit
from sae.training.run_folder import run_lock

OWN = ("site", "target_site", "layer")
"""Settings of the harvest in which members may differ."""


def sweep(configs: Sequence[TrainConfig]) -> list[TrainResult]:
    """Train every member that is not finished, one after the other; all need the same store, tokens and harvest.

    Raises:
        ConfigError: members differ in what they harvest; else as `train`. Everything is checked before anything runs.
    """
    plans = [make_plan(config) for config in configs]
    first = plans[0]
    for plan in plans[1:]:
        _check_same(first, plan)
    store_folder = first.config.store
    if store_folder is None:
        raise ConfigError("sweep: expected --store, where the activations that all members share are kept")
    sites = list(dict.fromkeys(site for plan in plans for site in plan.sites))
    results = []
    with StopSignal() as stop, Progress() as progress:
        lm = load_model(first, progress)
        harvest = Harvest(lm, sites, first.documents, first.config.harvest)
        progress.say(opening(harvest.documents, lm.tokenizer, first.config.harvest, beginning=lm.beginning))
        known = next((plan.precision for plan in plans if plan.precision != "auto"), "auto")
        first = settled(first._replace(precision=known), harvest, progress)
        begun = time.perf_counter()
        everywhere = {site.name: width for site, width in zip(sites, widths(sites), strict=True)}
        identity = {**store_identity(first, lm), "sites": everywhere}
        store_folder.mkdir(parents=True, exist_ok=True)
        with run_lock(store_folder):
            store = fill(DiskStore(store_folder, identity), first, harvest, stop, progress)
        seconds = time.perf_counter() - begun
        for number, member in enumerate(plans, start=1):
            plan = with_precision(member, first.precision)
            progress.say(f"{plan.config.out.name} ({number} of {len(plans)})")
            plan.config.out.mkdir(parents=True, exist_ok=True)
            with run_lock(plan.config.out):
                begin_record(plan, lm)
                batches = stored_batches(plan, store)
                results.append(fit(plan, batches, harvest, stop, progress, harvest_seconds=seconds))
    return results


def _check_same(first: Plan, other: Plan) -> None:
    """Refuse members that one harvest cannot feed."""
    mine, theirs = to_json(first.config.harvest), to_json(other.config.harvest)
    mine |= {"tokens": first.config.tokens, "store": str(first.config.store)}
    theirs |= {"tokens": other.config.tokens, "store": str(other.config.store)}
    for name, value in mine.items():
        if name not in OWN and theirs[name] != value:
            raise ConfigError(
                f"sweep: --{name.replace('_', '-')} is {value!r} and {theirs[name]!r}; one harvest feeds all"
            )
