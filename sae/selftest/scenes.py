"""Everything that the toolkit writes, each with the function by which it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae.browser.opened import curves
from sae.features.store.restore import restore
from sae.features.store.search import search
from sae.features.store.store import FeatureStore
from sae.harvest.store_disk import DiskStore
from sae.interop import read
from sae.run import Run
from sae.runs.metrics import read_metrics
from sae.selftest.made import EXPORTS, LENS_KEPT, make_runs
from sae.training.checkpoint import load_newest
from sae.training.logging import kept_lines
from sae.training.loop import METRICS_STATE
from sae.training.run_folder import read_record

RUN_FILES = ["config.json", "eval.json", "metrics.jsonl", "sae.safetensors"]
FEATURE_FILES = ["annotations.sqlite", "features.lens.sqlite", "features.scalars.npy", "features.sqlite"]
LEGAL: dict[str, tuple[str, ...]] = {"annotations.sqlite": ("swap", "empty"), "metrics.jsonl": ("swap",)}
"""File -> damage that leaves what may be there. Annotations of other weights are kept, and not shown; a process killed
before its first transaction leaves an empty database; lines of metrics do not say whose they are."""
WORDS_SEARCHED = ("river", "children")


class Scene(NamedTuple):
    """Files, and what reads them."""

    name: str
    """What they are."""
    folder: Path
    """Where they lie."""
    other: Path
    """The same files of another run."""
    files: list[str]
    """Paths in the folder."""
    read: Callable[[Path], Any]
    """Reads the folder as commands do; returns everything that it read."""


def make_scenes(folder: Path) -> list[Scene]:
    """Two sets of runs that differ in their texts and their seed, with all that is made of them."""
    one, other = (make_runs(folder / name, seed=seed).folder for seed, name in enumerate(("one", "other")))
    scenes = [
        Scene("run", one / "run", other / "run", RUN_FILES, _run),
        Scene("features", one / "run", other / "run", FEATURE_FILES, read_features),
    ]
    whole = {"unfinished": _unfinished, "store": _store}
    whole |= {f"export/{format}": _exported(inside) for format, inside in EXPORTS.items()}
    for name, reader in whole.items():
        scenes.append(Scene(name, one / name, other / name, _files(one / name), reader))
    return scenes


def _files(folder: Path) -> list[str]:
    """Paths of the files in a folder, without locks and what is beside the newest checkpoint."""
    files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    newest = max((file for file in files if file.startswith("checkpoints/")), default="").rpartition("/")[0]
    return sorted(f for f in files if not f.startswith("checkpoints/") or f.startswith(newest))


def _run(folder: Path) -> Any:
    """What Python and the page read of a finished run, but for its features."""
    run = Run(folder)
    return {
        "record": run.record,
        "weights": dict(run.model.state_dict()),
        "evaluation": run.evaluation,
        "metrics": read_metrics(folder),
        "curves": curves(folder),
    }


def read_features(folder: Path) -> Any:
    """What the page, the commands and a resumed pass read of the features."""
    features = FeatureStore(folder)
    try:
        documents = [row[0] for row in features.query("SELECT id FROM documents ORDER BY id")]
        return {
            "info": features.info,
            "scalars": features.scalars,
            "records": [features.raw(latent) for latent in range(features.width)],
            "shown": features.record(3),
            "documents": [features.document(number) for number in documents],
            "events": [features.events_in(number) for number in documents],
            "search": [search(features, word) for word in WORDS_SEARCHED],
            "labels": features.annotations.all(),
            "names": features.annotations.names(),
            "neighbours": [_rounded(features.lens.neighbours(latent)) for latent in range(LENS_KEPT)],
            "logits": [[_rounded(part) for part in features.lens.logits(latent)] for latent in range(LENS_KEPT)],
            "restored": _restored(folder),
        }
    finally:
        features.close()


def _rounded(pairs: list[tuple[int, float]]) -> list[tuple[int, str]]:
    """What is computed again for one latent differs in the last bits from what was computed for all at once."""
    return sorted((number, f"{value:.3g}") for number, value in pairs)


def _restored(folder: Path) -> Any:
    collection = restore(folder)
    statistics = collection.statistics
    return [collection.tokens, collection.left_out, statistics.count, statistics.sums, statistics.histogram]


def _unfinished(folder: Path) -> Any:
    """What resuming reads."""
    record = read_record(folder)
    checkpoint = load_newest(folder / "checkpoints")
    assert checkpoint is not None
    kept = kept_lines(folder / "metrics.jsonl", 1, checkpoint.data.get(METRICS_STATE))
    return {"record": record, "checkpoint": checkpoint, "metrics": kept}


def _store(folder: Path) -> Any:
    """All rows."""
    store = DiskStore(folder)
    return {
        "identity": store.identity,
        "rows": store.read(range(store.rows), list(store.identity["sites"])),
        "end": store.end(),
    }


def _exported(inside: str) -> Callable[[Path], Any]:
    def read_exported(folder: Path) -> Any:
        """The autoencoder in another tool's format, and what is said of it."""
        imported = read(folder / inside)
        code = imported.model.code.describe()
        return {"weights": dict(imported.model.state_dict()), "code": code, "origin": imported.origin}

    return read_exported
