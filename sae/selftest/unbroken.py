"""The commands that `kill` and `faults` interrupt, how each is resumed, and what must be equal in the end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from sae.base.files import MANIFEST, check_folder, read_json
from sae.features.store.annotations import Annotations
from sae.features.store.database import Blobs, open_read_only
from sae.features.store.store import FeatureStore, read_info
from sae.features.store.writer import PARTS, STORE, TABLES
from sae.harvest.shards import IDENTITY
from sae.harvest.store import DiskStore
from sae.models.saved import CONFIG, read_config, read_report, verify
from sae.selftest.children import Children, Ended, Job
from sae.selftest.content import fingerprint
from sae.selftest.world import World

SETTINGS: dict[str, Any] = {"tokens": 3_072, "checkpoint_every": 1_280, "keep_checkpoints": 2, "log_every": 3}
"""Of a training run: 12 steps with checkpoints after 5 and 10."""
CHANGING = {"seconds", "collected_at", "revision", "run", "tokens_a_second", "megabytes", "store_view"}
"""Values that differ between two runs of the same command; "store_view" says that the store was there before."""


class Command(NamedTuple):
    """A command that can be interrupted."""

    name: str
    begin: tuple[str, ...]
    """Arguments of its first start."""
    resume: Callable[[Path], tuple[str, ...] | None]
    """Arguments to continue what is in a folder; None where it is complete."""
    content: Callable[[Path], dict[str, Any]]
    """Everything that it made, without what differs between two runs."""
    after: str | None = None
    """The command on whose result it works."""


def commands(world: World) -> dict[str, Command]:
    """Name -> command. Paths are relative to the folder in which a command runs, but for those of `world`."""
    world = World(*(path.absolute() for path in world))
    train = ("train", *world.arguments(**SETTINGS), "--out", "run")
    stored = (
        "train", *world.arguments(**SETTINGS, epochs=2), "--store", "store", "--out", "run",
    )  # fmt: skip
    harvest = (
        "harvest", "--model", str(world.model), "--dataset", str(world.texts), "--layer", "0,1", "--context", "64",
        "--contexts", "4", "--tokens", "4096", "--store", "store",
    )  # fmt: skip
    sweep = (
        "sweep", *world.arguments(**{**SETTINGS, "k": "2,4"}), "--evaluate-tokens", "512", "--downstream-tokens", "128",
        "--out", "sweep",
    )  # fmt: skip
    features = ("features", "run", "--tokens", "2048", "--save-every", "0")
    evaluation = (
        "eval", "run", "--tokens", "512", "--downstream-tokens", "128", "--pca-tokens", "512", "--resamples", "10",
    )  # fmt: skip
    explain = ("explain", "run")
    made = [
        Command("harvest", harvest, lambda folder: harvest, lambda folder: {"store": _rows(folder / "store")}),
        Command("train", train, lambda folder: _resumed(folder, train), lambda folder: _run(folder / "run")),
        Command("store", stored, lambda folder: _resumed(folder, stored), _stored),
        Command("sweep", sweep, lambda folder: sweep, _sweep),
        Command("features", features, lambda folder: _collected(folder, features), _features, "train"),
        Command("explain", explain, lambda folder: explain, _names, "features"),
        Command("eval", evaluation, lambda folder: evaluation, _evaluation, "train"),
    ]
    return {command.name: command for command in made}


class Unbroken(NamedTuple):
    """One command that ran without being disturbed."""

    command: Command
    folder: Path
    """Where it ran."""
    ended: Ended
    content: dict[str, str]
    """What it made -> fingerprint."""


def run_unbroken(
    folder: Path, wanted: dict[str, Command], children: Children, broken: str | None = None
) -> dict[str, Unbroken]:
    """Run every command once, each in a folder of its own.

    Raises:
        RuntimeError: a command fails though nothing disturbs it.
    """
    done: Mapping[str, Unbroken] = {}
    for name, command in wanted.items():
        place = prepared(folder / name, command, done)
        ended = children.run(Job(place, command.begin, broken=broken))
        if ended.status != 0:
            raise RuntimeError(f"{name}: exit status {ended.status} though nothing disturbed it: {ended.said[-2000:]}")
        done[name] = Unbroken(command, place, ended, fingerprints(command, place))
    return done


def prepared(folder: Path, command: Command, done: Mapping[str, Unbroken]) -> Path:
    """A new folder for a command, with a copy of what it works on."""
    if command.after is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(done[command.after].folder, folder)
    return folder


def fingerprints(command: Command, folder: Path) -> dict[str, str]:
    """What a command made, by name, as hashes."""
    return {name: fingerprint(value) for name, value in command.content(folder).items()}


def check_published(folder: Path) -> None:
    """Read everything in a folder that has its final name.

    Raises:
        CorruptError, ConfigError: something is not whole.
    """
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".partial-") for part in path.relative_to(folder).parts):
            continue
        if path.name == IDENTITY:
            _rows(path.parent)
        elif path.name == MANIFEST and not (path.parents[2] / IDENTITY).exists():
            check_folder(path.parent)
        elif path.suffix == ".json":
            read_json(path)
        elif path.name == STORE:
            _database(path)
        elif path.name == "annotations.sqlite":
            notes = Annotations(path.parent)
            fingerprint([notes.names(), notes.all()])
        elif path.name == "sae.safetensors" and read_config(path.parent).get("autoencoder"):
            verify(path.parent)


def _resumed(folder: Path, begin: tuple[str, ...]) -> tuple[str, ...] | None:
    """A training run that has a record resumes; one that was killed before starts again."""
    if not (folder / "run" / CONFIG).exists():
        return begin
    return None if read_config(folder / "run").get("autoencoder") else ("train", "--resume", "--out", "run")


def _collected(folder: Path, begin: tuple[str, ...]) -> tuple[str, ...]:
    return (*begin, "--resume") if (folder / "run" / STORE).exists() else begin


def _run(run: Path) -> dict[str, Any]:
    """Weights, every checkpoint with its optimizer state, counters and place in the data, and all metrics."""
    checkpoints = {}
    for path in sorted((run / "checkpoints").glob("[0-9]*")):
        check_folder(path)
        state = read_json(path / "state.json")
        checkpoints[path.name] = [load_file(path / "state.safetensors"), lasting(state)]
    return {
        "weights": load_file(run / "sae.safetensors"),
        "checkpoints": checkpoints,
        "config.json": lasting(read_config(run)),
        "metrics.jsonl": (run / "metrics.jsonl").read_bytes(),
    }


def _stored(folder: Path) -> dict[str, Any]:
    return {**_run(folder / "run"), "store": _rows(folder / "store")}


def _rows(store: Path) -> Any:
    """Every row of a store: activations, token, document, position and kind."""
    opened = DiskStore(store, read_json(store / IDENTITY))
    return opened.read(range(opened.rows), list(opened.identity["sites"])) if opened.rows else None


def _sweep(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = {"comparison.json": lasting(read_json(folder / "sweep" / "comparison.json"))}
    for config in sorted((folder / "sweep").glob(f"*/{CONFIG}")):
        run = config.parent
        content |= {f"{run.name} {name}": value for name, value in _run(run).items()}
        content[f"{run.name} eval.json"] = lasting(read_report(run, "eval.json"))
    return content


def _features(folder: Path) -> dict[str, Any]:
    store = FeatureStore(folder / "run")
    with contextlib.closing(store):
        return {"scalars": store.scalars.tobytes(), "info": lasting(store.info), **_database(folder / "run" / STORE)}


def _database(path: Path) -> dict[str, Any]:
    """All tables of a store of features, but for what differs between two passes."""
    read_info(path)
    with contextlib.closing(open_read_only(path, TABLES)) as connection:
        blobs = Blobs(connection, path)
        tables: dict[str, Any] = {name: list(blobs.all(name)) for name in ("records", "documents", "events")}
        tables["parts"] = [part for part in blobs.all("parts") if part[0] != PARTS["info"]]
        tables["texts"] = list(blobs.query("SELECT id, text FROM texts ORDER BY id"))
    return tables


def _names(folder: Path) -> dict[str, Any]:
    return {
        "names": Annotations(folder / "run").names(),
        "explain.json": lasting(read_report(folder / "run", "explain.json")),
    }


def _evaluation(folder: Path) -> dict[str, Any]:
    return {"eval.json": lasting(read_report(folder / "run", "eval.json"))}


def lasting(value: Any) -> Any:
    """JSON values without those that differ between two runs."""
    if isinstance(value, dict):
        return {name: lasting(inner) for name, inner in value.items() if name not in CHANGING}
    return [lasting(inner) for inner in value] if isinstance(value, list) else value
