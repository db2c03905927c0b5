"""Runs that differ in their seed alone.

groups = by_settings(["runs/topk-seed0", "runs/topk-seed1", "runs/jumprelu-seed0"])     # [[0, 1], [2]]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.config import ConfigError
from sae.models.saved import CONFIG, locate_run, read_config

ANY = ("out", "resume", "store", "device", "wandb", "log_every", "checkpoint_every", "keep_checkpoints")
"""Settings of a run that change nothing in its weights."""


def settings_of(run: str | Path) -> dict[str, Any]:
    """What a run was trained with, flat; its seed is "seed".

    Raises:
        ConfigError: its record has no settings.
    """
    folder = locate_run(run)
    record = read_config(folder) if (folder / CONFIG).is_file() else {}
    if (origin := record.get("imported")) is not None:
        # other tools' files tell no settings: each is a group of its own
        shape = {name: record["autoencoder"][name] for name in ("dim", "width")}
        return {**shape, "tool": origin["tool"], "sites": origin["sites"], "k": str(run)}
    train = record.get("train")
    if train is None:
        raise ConfigError(f"{run}: its record has no settings (it is of kind {record.get('kind')!r})")
    flat: dict[str, Any] = {}
    for name, value in train.items():
        flat |= {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def but_for_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which runs agree that differ in their seed alone."""
    return {name: value for name, value in settings.items() if name != "seed" and name not in ANY}


def by_settings(settings: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Places of runs that differ in their seed alone, in the order in which their settings first come.

    Args:
        settings: `settings_of` each run.
    """
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(settings):
        groups.setdefault(json.dumps(but_for_seed(each), sort_keys=True), []).append(place)
    return list(groups.values())
