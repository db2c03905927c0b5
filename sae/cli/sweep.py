"""`sae sweep`: many autoencoders on one read, evaluated on the same tokens, compared in one table and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.progress import Progress
from sae.config import EvalConfig, TrainConfig
from sae.reporting.sweep import compare
from sae.runs.sweeps import write_sweep
from sae.training.sweep import plan_sweep, sweep
from sae.training.sweep_space import estimate_members


def run_sweep(out: Path, members: Sequence[TrainConfig], evaluation: EvalConfig) -> dict[str, Any]:
    """Train the members that are not finished, evaluate all of them together, write the comparison into `out`.

    Args:
        out: folder of the members and of the comparison.
        members: each with its own folder inside `out`.

    Returns:
        The table; "status" is 1 where a member has stopped before its end.
    """
    plan = plan_sweep(members)  # refused before the folder is written to
    names = [member.out.name for member in members]
    write_sweep(out, names)
    results = sweep(members, plan)
    errors = {result.out.name: result.error for result in results if result.error is not None}
    write_sweep(out, names, errors)
    compared = compare(out, evaluation, again=False)
    return {**compared, "status": 1} if errors else compared


def dry_run(members: Sequence[TrainConfig]) -> dict[str, Any]:
    """Members, memory, disk and time of a sweep; nothing is trained or written."""
    plan = plan_sweep(members)
    if not plan.members:
        return {"members": [{"run": config.out.name, "finished": True} for config in plan.kept]}
    with Progress() as progress:
        progress.say(plan.members[0].data.opening())
    finished = {"finished": [config.out.name for config in plan.kept]} if plan.kept else {}
    return {**estimate_members(plan.groups), **finished}
