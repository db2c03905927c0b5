"""Commands that write, each with what it needs before, how its files are opened, and how it is resumed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae.config import CollectConfig, EvalConfig, TrainConfig
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.features.store.annotations import FILE as ANNOTATIONS
from sae.features.store.annotations import Annotations
from sae.features.store.writer import STORE
from sae.harvest.store_disk import DiskStore
from sae.models.saved import CONFIG, WEIGHTS, load
from sae.run import Run
from sae.runs.metrics import read_metrics
from sae.selftest.content import fingerprint
from sae.selftest.scenes import read_features
from sae.selftest.world import World
from sae.training.checkpoint import load_newest
from sae.training.run import train
from sae.training.run_folder import read_record
from sae.training.sweep import sweep

SHORT = {"tokens": 2_048, "checkpoint_every": 512}
LABELS = 3


class Scenario(NamedTuple):
    """One command."""

    name: str
    folder: Path
    """All that it writes lies in it."""
    prepare: Callable[[], None]
    """Makes the folder as it is before the command."""
    act: Callable[[], Any]
    """The command."""
    open: Callable[[], Any]
    """Reads what is there, however far the command came; raises for a file that is damaged."""
    resume: Callable[[], Any]
    """The command again, as the user gives it after a crash."""
    result: Callable[[], str]
    """A hash of what the finished command wrote that must not depend on a crash."""


def make_scenarios(world: World, folder: Path) -> list[Scenario]:
    """Every command that writes, with a finished run for those that read one."""
    finished = folder / "finished"
    train(world.config(finished, **SHORT))
    evaluated = EvalConfig(tokens=512, downstream_tokens=256, pca_tokens=512, resamples=10)
    collected = CollectConfig(tokens=2_048, save_every=0)

    def place(name: str) -> Path:
        return folder / name

    def of_run(name: str, act: Callable[[Path, bool], Any], opened: Callable[[Path], Any], file: str) -> Scenario:
        """A command that writes one file into a finished run."""
        run = place(name) / "run"
        return Scenario(
            name,
            place(name),
            lambda: _copied(finished, run),
            lambda: act(run, False),
            lambda: opened(run) if (run / file).is_file() else None,
            lambda: act(run, (run / file).is_file()),
            lambda: fingerprint(opened(run)),
        )

    def do_collect(run: Path, resume: bool) -> None:
        collect(str(run), dataclasses.replace(collected, resume=resume))

    return [
        _training("train", place("train"), world.config(place("train") / "run", **SHORT)),
        _training(
            "train from a store",
            place("store"),
            world.config(place("store") / "run", **SHORT, epochs=2, store=place("store") / "store"),
        ),
        _sweep(place("sweep"), [_member(world, place("sweep"), k) for k in (2, 4)]),
        of_run("features", do_collect, _collected, STORE),
        of_run("eval", lambda run, _: evaluate(str(run), evaluated), _measured, "eval.json"),
        of_run("labels", lambda run, _: _label(run), lambda run: Annotations(run).all(), ANNOTATIONS),
    ]


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir()
    shutil.copytree(source, target)


def _training(name: str, folder: Path, config: TrainConfig) -> Scenario:
    return Scenario(
        name,
        folder,
        folder.mkdir,
        lambda: train(config),
        lambda: _opened(config),
        lambda: _resumed(config),
        lambda: fingerprint(_learned(config.out)),
    )


def _sweep(folder: Path, members: list[TrainConfig]) -> Scenario:
    def resume() -> None:
        unfinished = [member for member in members if not _is_finished(member.out)]
        for member in unfinished:
            _begin_again(member.out)
        sweep([dataclasses.replace(m, resume=(m.out / CONFIG).is_file()) for m in unfinished]) if unfinished else None

    return Scenario(
        "sweep",
        folder,
        folder.mkdir,
        lambda: sweep(members),
        lambda: [_opened(member) for member in members],
        resume,
        lambda: fingerprint([_learned(member.out) for member in members]),
    )


def _member(world: World, folder: Path, k: int) -> TrainConfig:
    return world.config(folder / f"k{k}", **SHORT, k=k, store=folder / "store")


def _opened(config: TrainConfig) -> Any:
    """What resuming reads of a run; the autoencoder of a finished one."""
    store = None
    if config.store is not None and (Path(config.store) / "identity.json").is_file():
        opened = DiskStore(config.store)
        store = opened.read(range(opened.rows), list(opened.identity["sites"])) if opened.rows else None
    if not (config.out / CONFIG).is_file():
        return None
    record = read_record(config.out)
    if record.get("autoencoder"):
        return [store, record, read_metrics(config.out), dict(load(config.out).state_dict())]
    return [store, record, read_metrics(config.out), load_newest(config.out / "checkpoints")]


def _resumed(config: TrainConfig) -> None:
    if _is_finished(config.out):
        return
    _begin_again(config.out)
    train(dataclasses.replace(config, resume=(config.out / CONFIG).is_file()))


def _begin_again(out: Path) -> None:
    """Nothing was saved: the user deletes the folder, as the refusal says."""
    if out.exists() and not (out / CONFIG).is_file():
        shutil.rmtree(out)


def _is_finished(out: Path) -> bool:
    return (out / CONFIG).is_file() and (out / WEIGHTS).is_file() and bool(read_record(out).get("autoencoder"))


def _learned(out: Path) -> Any:
    """Weights, and the losses of all steps."""
    losses = [[line["step"], line["loss"]] for line in read_metrics(out)]
    return [dict(load(out).state_dict()), losses]


def _collected(run: Path) -> Any:
    """The features, but for their revision, which counts writings."""
    read = read_features(run)
    return {name: value for name, value in read.items() if name != "info"}


def _measured(run: Path) -> Any:
    """The evaluation, but for the time it took."""
    return {name: value for name, value in Run(run).evaluation.items() if name != "seconds"}


def _label(run: Path) -> None:
    annotations = Annotations(run)
    for latent in range(LABELS):
        annotations.set(latent, label=f"label {latent}", bookmark=True)
