"""What every run folder holds, and the table of kinds of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.config import ConfigError, from_json
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG, load, locate_run, read_config


class Kind(NamedTuple):
    """One kind of run."""

    what: str
    """What it is, for people."""
    made_by: str
    """The command that trains it."""
    uses: str
    """Which commands read it; empty for all."""


KINDS = {
    "language": Kind("a run on a language model's activations", "sae train", ""),
    "image": Kind("a run on images", "sae image train", "sae eval, features, browse, export and image report read it"),
    "tensors": Kind(
        "a run on a file of activations",
        "sae train --data",
        "sae eval and sae verify read it; no text or image belongs to it that could be shown",
    ),
    "weights": Kind(
        "another tool's autoencoder without text",
        "sae import",
        "sae verify, sae export and Python read it; import it again with --dataset for the other commands",
    ),
    "rows": Kind(
        "a run on rows of numbers",
        "sae image compare",
        "its measures are in comparison.json there; sae verify reads it",
    ),
}
"""Kind in config.json -> what it is."""


def called(kind: str) -> str:
    """What a kind of run is and which commands read it."""
    if kind not in KINDS:
        return f"a run of the unknown kind {kind!r}, of a newer version maybe"
    what, made_by, uses = KINDS[kind]
    return f"{what}, made by {made_by} ({uses})" if uses else what


def kind_of(run: str | Path) -> str:
    """The kind of a run folder; where it has no record, language: opening it then says what is missing."""
    path = locate_run(run) / CONFIG
    return read_config(path.parent).get("kind", "language") if path.is_file() else "language"


def check_kind(run: str | Path, *kinds: str) -> None:
    """Refuse a run of another kind than these.

    Raises:
        ConfigError: says what it is, and what was expected.
    """
    kind = kind_of(run)
    if kind not in kinds:
        expected = " or ".join(f"{KINDS[k].what}, made by: {KINDS[k].made_by}" for k in kinds)
        raise ConfigError(f"{run}: {called(kind)}; expected {expected}")


def check_language(run: str | Path, what: str) -> None:
    """Refuse a run that is not on a language model; `what` needs one, and is the subject of the message's sentence.

    Raises:
        ConfigError, CorruptError: the run is of another kind, or no run.
    """
    kind = kind_of(run)
    if kind != "language":
        raise ConfigError(f"{run}: {called(kind)}; {what} needs {KINDS['language'].what}")


class Opened(NamedTuple):
    """A finished run's folder, its record, its autoencoder and its settings."""

    folder: Path
    record: dict[str, Any]
    """config.json."""
    model: Autoencoder
    """The saved autoencoder, in inference form."""
    config: Any
    """What it was trained with: an object of the class that was asked for."""


def open_folder(run: str | Path, kind: str, settings: type, *, device: torch.device | str) -> Opened:
    """What runs of all kinds have in common.

    Args:
        run: a run folder, or a hub repository that holds one.
        kind: the one that is expected.
        settings: class of its settings.

    Raises:
        ConfigError, CorruptError: there is none, it is of another kind, or it is not finished.
    """
    folder = locate_run(run)
    if (folder / CONFIG).is_file():  # else loading says what is missing
        check_kind(run, kind)
    model = load(folder, device=device)
    record = read_config(folder)
    return Opened(folder, record, model, from_json(settings, record["train"], f"{folder / CONFIG}: train"))
