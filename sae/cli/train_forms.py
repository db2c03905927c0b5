"""The forms of `sae train`: on text, on a file of activations or on images; new, or resuming the run in --out."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path
from typing import Any

from sae.base.launcher import world_size
from sae.cli.image_commands import ImageTrain
from sae.cli.training import TensorTrain, Train
from sae.config import (
    ConfigError,
    ImageTrainConfig,
    TensorTrainConfig,
    TrainConfig,
    from_json,
    is_tensor_data,
    unknown_choice,
)

TRAIN_CONFIGS: dict[type, type] = {Train: TrainConfig, TensorTrain: TensorTrainConfig, ImageTrain: ImageTrainConfig}
"""Command -> its settings."""
COMMAND_OF_KIND = {"language": Train, "tensors": TensorTrain, "image": ImageTrain}
"""Kind of run in config.json -> the command that trains it."""
TRAINS_ON = {Train: "text (--model and --dataset)", TensorTrain: "a file of activations", ImageTrain: "images"}


def train_command(arguments: list[str]) -> type:
    """The form of `sae train` that is meant: on text, or with --data on a file of activations or on images.

    Raises:
        ConfigError: a flag of another form is given.
    """
    data, record = value_of(arguments, "--data"), _begun(arguments)
    command: type = Train
    if data is not None:
        command = TensorTrain if is_tensor_data(data) else ImageTrain
    elif record is not None:
        kind = record.get("kind", "language")
        if kind not in COMMAND_OF_KIND:
            raise unknown_choice("--resume: the run's kind", str(kind), COMMAND_OF_KIND)
        command = COMMAND_OF_KIND[kind]
    known = {cls: _flags(cls) for cls in TRAIN_CONFIGS}
    for flag in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        owners = [TRAINS_ON[cls] for cls, flags in known.items() if flag in flags and cls is not command]
        if owners and flag not in known[command]:
            what = f"--data {data} trains on {TRAINS_ON[command]}" if data else f"this trains on {TRAINS_ON[command]}"
            raise ConfigError(f"{flag}: it is of runs on {' and on '.join(owners)}, and {what}")
    return command


def _flags(cls: type) -> set[str]:
    """The flags of a command, nested settings included."""
    flags: set[str] = set()
    for name, hint in typing.get_type_hints(cls).items():
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        flags |= _flags(hint) if nested else {f"--{name.replace('_', '-')}"}
    return flags


def value_of(arguments: list[str], flag: str) -> str | None:
    """What stands behind a flag; None without it."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _begun(arguments: list[str]) -> dict[str, Any] | None:
    """With --resume, config.json of the run in --out; None where there is none."""
    out = value_of(arguments, "--out")
    if "--resume" not in arguments or out is None or not (Path(out) / "config.json").is_file():
        return None
    from sae.base.files import read_json

    record = read_json(Path(out) / "config.json")
    return record if isinstance(record, dict) else {}


def resumed(arguments: list[str], cls: type) -> Any:
    """With --resume, the settings that the run in --out was started with are the defaults of all other flags."""
    record = _begun(arguments) if arguments[:1] == ["train"] else None
    if record is None:
        return None
    out = value_of(arguments, "--out") or ""
    config = from_json(TRAIN_CONFIGS[cls], record.get("train"), f"{out}/config.json: train")
    config = dataclasses.replace(config, out=Path(out))
    if isinstance(config, TrainConfig) and config.mesh is not None and not _fits(config.mesh):
        config = dataclasses.replace(config, mesh=None)  # the run goes on with another number of processes
    return cls(config=config)


def _fits(mesh: str) -> bool:
    """Whether a recorded mesh is for as many processes as there are now."""
    data, _, latent = mesh.partition("x")
    return int(data) * int(latent) == world_size()
