"""Many runs from one harvest: the activations that all of them need are collected once and shared.

results = sweep([TrainConfig(..., out=Path("runs/a")), TrainConfig(..., out=Path("runs/b"))])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, TrainConfig, to_json
from sae.training.plan import make_plan
from sae.training.run import TrainResult, fit
from sae.training.run_folder import own_folder
from sae.training.space import check_space
from sae.training.text import TextData

MAY_DIFFER = ("site", "target_site", "layer")
"""Settings of the harvest in which members may differ."""


def sweep(configs: Sequence[TrainConfig]) -> list[TrainResult]:
    """Train every member that is not finished, one after the other; all need the same store, tokens and harvest.

    Raises:
        ConfigError: members differ in what they harvest; else as `train`. Everything is checked before anything runs.
    """
    plans = [make_plan(config) for config in configs]
    members = [plan.data for plan in plans if isinstance(plan.data, TextData)]
    first = members[0]
    for member in members[1:]:
        _check_same(first.config, member.config)
    if first.config.store is None:
        raise ConfigError("sweep: expected --store, where the activations that all members share are kept")
    for plan in plans:
        check_space(plan)
    sites = list(dict.fromkeys(site for member in members for site in member.sites))
    precision = next((member.precision for member in members if member.precision != "auto"), "auto")
    shared = dataclasses.replace(first, inputs=sites, targets=sites, precision=precision)
    results = []
    with StopSignal() as stop, Progress() as progress:
        shared.prepare(progress)
        store = shared.open_store(stop, progress)
        for number, (plan, member) in enumerate(zip(plans, members, strict=True), start=1):
            progress.say(f"{plan.config.out.name} ({number} of {len(plans)})")
            member.harvest, member.store = shared.harvest, store
            member.settle_precision(shared.precision)
            with own_folder(plan.config):
                results.append(fit(plan, stop, progress))
    return results


def _check_same(first: TrainConfig, other: TrainConfig) -> None:
    """Refuse members that one harvest cannot feed."""
    mine, theirs = to_json(first.harvest), to_json(other.harvest)
    mine |= {"tokens": first.tokens, "store": str(first.store)}
    theirs |= {"tokens": other.tokens, "store": str(other.store)}
    for name, value in mine.items():
        if name not in MAY_DIFFER and theirs[name] != value:
            raise ConfigError(
                f"sweep: --{name.replace('_', '-')} is {value!r} and {theirs[name]!r}; one harvest feeds all"
            )
