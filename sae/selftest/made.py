"""Runs of every kind on the tiny world, each made in a second."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from sae.base.disk import Operation, observed
from sae.config import CollectConfig, EvalConfig
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.features.store.annotations import Annotations
from sae.features.store.store import FeatureStore
from sae.interop.export import export
from sae.selftest.world import World, make_world
from sae.training.run import train

EXPORTS = {"saelens": "", "sparsify": "layers.1", "dictionary_learning": ""}
"""Format -> where in the exported folder its reader begins."""
LENS_KEPT = 2  # latents whose neighbours and logits are kept


def make_runs(folder: Path, *, seed: int, exports: bool = True) -> World:
    """A new world with a finished run (features, labels, evaluation), one without its end, a store, exported files."""
    world = make_world(folder, seed=seed)
    with contextlib.redirect_stderr(io.StringIO()):  # what the commands tell a person
        _make(world, seed, EXPORTS if exports else ())
    return world


def _make(world: World, seed: int, formats: Iterable[str]) -> None:
    run = world.folder / "run"
    train(world.config(run, seed=seed, tokens=4_096))
    evaluate(str(run), EvalConfig(tokens=1_024, downstream_tokens=256, pca_tokens=1_024, resamples=20))
    collect(str(run), CollectConfig(tokens=2_048))
    annotations = Annotations(run)
    annotations.set(3, label=f"label {seed}", note="seen", bookmark=True)
    annotations.set_names({4: {"name": f"name {seed}", "method": "rules", "score": 0.5}})
    features = FeatureStore(run)
    for latent in range(LENS_KEPT):
        features.neighbours(latent)
        features.logits(latent)
    features.close()
    with observed(_full_at_the_end), contextlib.suppress(OSError):
        train(world.config(world.folder / "unfinished", seed=seed, tokens=2_048, checkpoint_every=512))
    train(world.config(world.folder / "epochs", seed=seed, epochs=2, tokens=1_024, store=world.folder / "store"))
    shutil.rmtree(world.folder / "epochs")
    for format in formats:
        export(run, format, world.folder / "export" / format)


def _full_at_the_end(operation: Operation, perform: Callable[[], None]) -> None:
    """The disk is full when the trained autoencoder is saved."""
    if operation.kind == "write" and "sae.safetensors" in operation.path.name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))
    perform()
