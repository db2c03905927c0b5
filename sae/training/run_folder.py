"""A run's folder: whether it may be written to or resumed, which process owns it, what its config.json records."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.base import disk
from sae.base.files import CorruptError, existing, publish_json, remove_leftovers, sha256_of
from sae.base.locks import check_writable, locked, only_left_by_locks
from sae.config import ConfigError, RunConfig, from_json, to_json
from sae.models.saved import CONFIG, CONFIG_FORMAT, WEIGHTS, read_config, save_weights
from sae.runs.metrics import METRICS
from sae.training.trainer import Trainer

MAY_CHANGE_ON_RESUME = {
    "resume",
    "device",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "wandb",
    "out",
    "store",
    "mesh",
}
PACKAGES = ("sparsight", "torch", "transformers", "datasets", "numpy", "safetensors")
"""Packages whose versions a run records, those of them that are installed."""
DEFAULTS_OF_DATA = {"harvest.store_precision": "auto", "harvest.contexts": "auto", "epochs": None}
"""Settings whose default depends on the data or the device: a resumed run keeps what was chosen."""


def check_run_folder(config: RunConfig) -> None:
    """Refuse a run folder in use, a finished one, or one of another configuration.

    Raises:
        ConfigError: says which, and what to do.
    """
    out = config.out
    if not config.resume:
        if out.exists() and not (out.is_dir() and only_left_by_locks(out)):
            holds = (out / CONFIG).is_file()
            remedy = "continue that run with --resume" if holds else f"delete it: it holds no run (no {CONFIG})"
            raise ConfigError(f"--out {out}: exists already; choose another folder, or {remedy}")
        parent = existing(out)
        if not parent.is_dir():
            raise ConfigError(f"--out {out}: {parent} is a file; expected a folder")
        check_writable(parent, f"--out {out}: ")
        return
    if not (out / CONFIG).is_file():
        begun = out.is_dir() and only_left_by_locks(out)
        remedy = "; that run ended before its first file was written: start it again without --resume" if begun else ""
        raise ConfigError(f"--resume: {out} holds no run to continue (it has no {CONFIG}){remedy}")
    check_writable(out, "--resume: ")
    record = read_record(out)
    if is_finished(out):
        raise ConfigError(f"--resume: the run in {out} is finished; evaluate it with: sae eval {out}")
    begun = from_json(type(config), record["train"], f"{out / CONFIG}: train")  # with defaults that are newer than it
    saved, now = flat(to_json(begun)), flat(to_json(config))
    for name, default in DEFAULTS_OF_DATA.items():
        if name in now and now[name] == default:
            now[name] = saved[name]
    for name, value in now.items():
        if name not in MAY_CHANGE_ON_RESUME and saved.get(name) != value:
            raise ConfigError(
                f"--resume: {name} was {saved.get(name)!r} in {out}, now it is {value!r}; a run keeps its own"
            )


def check_kept_run(config: RunConfig, data: dict[str, Any]) -> None:
    """Refuse the run in `config.out`, finished or not, unless it has these settings and learns from this data.

    Args:
        config: what is asked for.
        data: JSON values, where its training data come from.

    Raises:
        ConfigError: names what differs.
    """
    record = read_record(config.out)
    asked = {**flat(to_json(config)), "data": json.loads(json.dumps(data))}  # as it is read back
    recorded = {**flat(record["train"]), "data": record["data"]}
    for name, value in asked.items():
        if name == "harvest.contexts" and value == "auto":
            continue  # recorded as the number that was found
        if name not in MAY_CHANGE_ON_RESUME and recorded.get(name) != value:
            raise ConfigError(
                f"{config.out}: was trained with {name} {recorded.get(name)}, now {value}; delete the folder, or "
                "choose another --out"
            )


def check_disk(flag: str, folder: Path, size: int) -> None:
    """Refuse a folder whose disk has no room for `size` bytes, counting what is there already.

    Raises:
        ConfigError: names the flag and what is needed.
    """
    free = shutil.disk_usage(existing(folder)).free
    size -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > free:
        raise ConfigError(f"{flag} {folder}: {size >> 20} MiB are needed, {free >> 20} MiB are free on that disk")


@contextlib.contextmanager
def own_folder(config: RunConfig) -> Iterator[None]:
    """Make the run's folder and lock it; a run that leaves nothing to resume leaves no folder behind.

    Raises:
        ConfigError: another process has locked it.
    """
    existed = config.out.exists()
    disk.make_folder(config.out)
    with locked(config.out):
        remove_leftovers(config.out)
        try:
            yield
        except BaseException as error:
            if not config.resume:
                _take_back(config.out, error, existed=existed)
            raise


def _take_back(out: Path, error: BaseException, *, existed: bool) -> None:
    """Remove the folder of a run that cannot be resumed: refused before its first step, or without a record."""
    refused = isinstance(error, ValueError) and not (out / METRICS).exists()
    if refused or not (out / CONFIG).exists():
        disk.unlink(out / CONFIG)
        for name in ("run.lock", "run.pid"):
            (out / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            if not existed:
                out.rmdir()


def is_finished(out: Path) -> bool:
    """Whether the run in a folder has saved its autoencoder.

    Raises:
        CorruptError: its config.json is not the record of a run.
    """
    return (out / WEIGHTS).is_file() and bool(read_record(out).get("autoencoder"))


def read_record(out: Path) -> dict[str, Any]:
    """What `new_record` put into a run's config.json.

    Raises:
        CorruptError: the file is not such a record.
    """
    record = read_config(out)
    if not all(isinstance(record.get(part), dict) for part in ("train", "data")):
        raise CorruptError(f"{out / CONFIG}: not the record of a run")
    return record


def new_record(config: RunConfig, *, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """What config.json of every run holds from the start: settings, versions, where the data came from."""
    versions = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    return {
        "format": CONFIG_FORMAT,
        "kind": kind,
        "train": to_json(config),
        "data": data,
        "versions": {"python": platform.python_version(), **versions},
        "autoencoder": None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def finish_record(config: RunConfig, trainer: Trainer, *, batch: int, **more: Any) -> None:
    """Save the trained autoencoder and complete config.json: the run is finished."""
    record = read_record(config.out)
    record["autoencoder"] = save_weights(config.out, trainer.finished(), trainer.probe)
    record["training"] = {
        "lr": trainer.peak,
        "steps": trainer.steps,
        "batch": batch,
        "seconds": trainer.seconds,
        "route": trainer.route.name,
        "form": trainer.model.code.describe(),
    }
    record["metrics_sha256"] = sha256_of(config.out / METRICS)
    publish_json(config.out / CONFIG, {**record, **more})


def check_finite(config: RunConfig) -> None:
    """Refuse infinities, which pass a check like "more than 0" and cannot be written as JSON."""
    for name, value in flat(to_json(config)).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name.rpartition('.')[2].replace('_', '-')} {value}: expected a finite number")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result
