"""Many runs on one read: what the language model gives, or a store holds, feeds all of them at once.

results = sweep([TrainConfig(..., out=Path("runs/a")), TrainConfig(..., out=Path("runs/b"))])
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from sae.base.launcher import world_size
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, TrainConfig, to_json
from sae.harvest.store import Store
from sae.models.saved import CONFIG
from sae.training.plan import make_plan
from sae.training.run import TrainResult
from sae.training.run_folder import check_disk, check_kept_run, is_finished, read_record
from sae.training.space import check_space, run_bytes
from sae.training.sweep_space import groups_that_fit
from sae.training.text import TextData, norm_report, open_text
from sae.training.together import HINT, Member, fill_memory, grouped, order_of, train_live, train_stored

MAY_DIFFER = ("site", "target_site", "layer")
"""Settings of the harvest in which members may differ."""


class MemberResult(NamedTuple):
    """What became of one member."""

    out: Path
    """Its run folder."""
    status: Literal["trained", "kept", "failed"]
    """kept: it was finished before."""
    result: TrainResult | None
    """Of a member that was trained."""
    error: str | None
    """Why a member failed; its newest checkpoint is in its folder."""


class SweepPlan(NamedTuple):
    """A checked sweep."""

    kept: list[TrainConfig]
    """Members that are finished."""
    members: list[Member]
    """Members to train."""
    groups: list[list[Member]]
    """The same, in groups that fit into memory: each group is one read."""


def sweep(configs: Sequence[TrainConfig], plan: SweepPlan | None = None) -> list[MemberResult]:
    """Train several autoencoders on one read of a language model's activations.

    Members may differ in their autoencoder, sites, optimizer, seed and buffer. Each ends with the weights that it would
    have alone: `train` of the same settings writes the same bits. Live, every forward pass serves all of them. From a
    store, which is filled first with what it lacks of all members' sites, those with one order of rows share what is
    read. A finished member is kept; one that was stopped goes on from its newest checkpoint. Where a step of a member
    is not finite, it stops with a checkpoint, and the others go on.

    Args:
        configs: one run each, with a folder of its own. `resume` is not read.
        plan: what `plan_sweep` made of them.

    Raises:
        ConfigError: members differ in what they harvest, have one folder, or a member does not fit into memory; else as
            `train`. Everything is checked before anything is loaded.
        Interrupted: SIGINT or SIGTERM; every member has a checkpoint.

    Example:
        >>> import sae
        >>> from pathlib import Path
        >>> harvest = sae.HarvestConfig(model="model", dataset="texts.jsonl", layer=1, context=64, contexts=8)
        >>> members = [
        ...     sae.TrainConfig(
        ...         harvest=harvest, sae=sae.SAEConfig(width=128, k=k), tokens=8_192, out=Path(f"runs/sweep/k{k}")
        ...     )
        ...     for k in (4, 8)
        ... ]
        >>> [(member.out.name, member.status) for member in sae.sweep(members)]
        [('k4', 'trained'), ('k8', 'trained')]
    """
    plan = plan or plan_sweep(configs)
    if plan.members:
        with StopSignal() as stop, Progress() as progress, contextlib.ExitStack() as folders:
            for member in plan.members:
                folders.enter_context(member)
            _train(plan, stop, progress)
    trained = {member.config.out: member for member in plan.members}
    return [_result(config.out, trained.get(config.out)) for config in configs]


def _result(out: Path, member: Member | None) -> MemberResult:
    if member is None:
        return MemberResult(out, "kept", None, None)
    error = None if member.error is None else str(member.error)
    return MemberResult(out, "failed" if error else "trained", member.result, error)


def plan_sweep(configs: Sequence[TrainConfig]) -> SweepPlan:
    """Check everything that can be checked without reading weights.

    Raises:
        ConfigError: see `sweep`.
    """
    if world_size() > 1:
        raise ConfigError("sweep: trains in one process; start it without torchrun, or train members one by one")
    if not configs:
        raise ConfigError("sweep: no member; expected the settings of at least one run")
    folders = [config.out.absolute() for config in configs]
    if twice := next((out for out in folders if folders.count(out) > 1), None):
        raise ConfigError(f"sweep: two members have the folder {twice}; expected one each")
    for config in configs[1:]:
        _check_same(configs[0], config)
    kept, members = [], []
    for config in configs:
        config = dataclasses.replace(config, resume=(config.out / CONFIG).is_file())
        if config.resume and is_finished(config.out):
            data = open_text(config, torch.device("cpu"))
            check_kept_run(config, data.provenance)
            kept.append(config)
            continue
        plan = make_plan(config)
        assert isinstance(plan.data, TextData)
        plan.data.hint = HINT
        members.append(Member(plan, plan.data))
    for member in members:
        check_space(member.plan)
    if members:
        _check_same_data(members)
        check_disk("--out", members[0].config.out.parent, sum(run_bytes(member.plan) for member in members))
    return SweepPlan(kept, members, groups_that_fit(members))


def _check_same(first: TrainConfig, other: TrainConfig) -> None:
    """Refuse members that one read cannot feed."""
    mine, theirs = ({**to_json(c.harvest), **_shared(c)} for c in (first, other))
    for name, value in mine.items():
        if name not in MAY_DIFFER and theirs[name] != value:
            raise ConfigError(
                f"sweep: --{name.replace('_', '-')} is {value!r} in {first.out} and {theirs[name]!r} in {other.out}; "
                "one read feeds all members"
            )


def _shared(config: TrainConfig) -> dict[str, object]:
    """What members share beside the harvest's settings; several epochs may differ in number where a store has rows."""
    epochs = None if config.store is not None else config.epochs
    return {
        "tokens": config.tokens,
        "store": None if config.store is None else str(config.store),
        "epochs": epochs,
        "device": config.device,
    }


def _check_same_data(members: Sequence[Member]) -> None:
    """Refuse members of which one was begun on another version of the data, or with another first token."""
    for name, value in members[0].data.provenance.items():
        for other in members[1:]:
            if (theirs := other.data.provenance.get(name)) != value:
                raise ConfigError(
                    f"sweep: data of {members[0].config.out} and {other.config.out} differ: {name} is {value!r} and "
                    f"{theirs!r}; train them one by one"
                )
    begun = [member.config.out for member in members if member.config.resume]
    beginnings = [(read_record(out).get("harvest") or {}).get("beginning") for out in begun]
    for out, beginning in zip(begun, beginnings, strict=True):
        if beginning != beginnings[0]:
            raise ConfigError(
                f"sweep: segments of {out} begin with {beginning}, those of {begun[0]} with {beginnings[0]}; train "
                "them one by one"
            )


def _train(plan: SweepPlan, stop: StopSignal, progress: Progress) -> None:
    members = plan.members
    # all members that were begun have the same first token of segments, which is kept
    first = next((member for member in members if member.config.resume), members[0]).data
    sites = list(dict.fromkeys(site for member in members for site in member.data.sites))
    shared = dataclasses.replace(first, inputs=sites, targets=sites)
    if first.config.store is not None:
        _open_store(members, shared, stop, progress)
    else:
        harvest = shared.harvest = shared.open_harvest(progress)
        places = list(dict.fromkeys(tuple(member.data.sites) for member in members))
        views = dict(zip(places, harvest.views(places), strict=True))
        progress.say(norm_report(harvest))
        for member in members:
            member.data.use(views[tuple(member.data.sites)], progress)
    groups = groups_that_fit(members, loaded=True)  # now that precisions are known
    for number, group in enumerate(groups, start=1):
        if len(groups) > 1:
            names = ", ".join(member.name for member in group)
            progress.say(f"Memory has room for some members at a time; part {number} of {len(groups)}: {names}.")
        if not first.cached:
            assert shared.harvest is not None
            train_live(group, shared.harvest, stop, progress)
            continue
        if first.in_memory:
            assert shared.harvest is not None
            fill_memory(group, shared.harvest, stop, progress)
        for order in grouped([member for member in group if member.active], order_of):
            train_stored(order, stop, progress)
        for member in group:
            member.data.store = None


def _open_store(members: Sequence[Member], shared: TextData, stop: StopSignal, progress: Progress) -> None:
    """Harvest what the store lacks of all members' sites, and let every member read it."""
    shared.precision = next((m.data.precision for m in members if m.data.precision != "auto"), "auto")
    shared.check_space()
    shared.prepare(progress)
    stores: dict[object, Store] = {}
    for member in members:
        data = member.data
        # a member that was begun reads the shards that were there then
        whole = data.opened if data.complete else None
        view = None if whole is None else tuple(whole.view.items())
        if view not in stores:
            stores[view] = (shared if whole is None else data).open_store(stop, progress)
        data.harvest, data.store = shared.harvest, stores[view]
        if shared.harvest is not None:
            data.use_contexts(shared.harvest.contexts_in_a_pass)
        data.settle_precision(shared.precision)
