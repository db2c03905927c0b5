"""A run folder or another tool's files, wherever one of them is expected.

model = load("gemma-scope-2b-pt-res/layer_12/width_16k/canonical")     # an autoencoder; ours come first
folder = as_run("their_sae", command="eval", dataset="demo")           # a run folder, imported where it is none
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from sae.base.files import read_json, sha256_of
from sae.config import ConfigError, Device, ImportConfig
from sae.data.cache import cache_dir
from sae.interop import matching, read, recognised, split_layer
from sae.interop.files import check_readable
from sae.models import saved
from sae.models.autoencoder import Autoencoder
from sae.runs.base import kind_of

OUTSIDE = ("config.json", "config.yaml")
"""Settings one folder above an autoencoder's, which some formats read."""


def load(source: str | Path, *, format: str = "auto", device: str | torch.device = "cpu") -> Autoencoder:
    """An autoencoder, ready for `encode` and `decode`: a run folder's, or another tool's.

    Args:
        source: run folder; file or folder of another tool (`folder:LAYER` for a cross-layer transcoder); `hub_id` or
            `hub_id:path` of either; or a short name of `sae list`.
        format: a key of `sae.interop.READERS`, to read another tool's files as that.
        device: where its weights go.

    Raises:
        ConfigError: nothing is there, a run is not finished, or a format cannot be recognised or held.
        CorruptError: a file is damaged, or a run's self-test fails.

    Example:
        >>> import sae, torch
        >>> model = sae.load("runs/demo")
        >>> codes = model.encode(torch.randn(5, model.dim))
        >>> model.decode(codes).shape == (5, model.dim), codes.to_dense().shape == (5, model.width)
        (True, True)
    """
    run = own_run(source) if format == "auto" else None
    if run is not None:
        return saved.load(run, device=device)
    from sae.interop.sources import fetch

    place, layer = split_layer(source)
    fetched = fetch(place, lambda line: print(line, file=sys.stderr))
    if format == "auto" and _is_run(fetched.path):  # below a folder of a repository
        return saved.load(fetched.path, device=device)
    path = fetched.path if layer is None else f"{fetched.path}:{layer}"
    return read(path, fetched.format if format == "auto" else format).model.to(device)


def own_run(source: str | Path) -> Path | None:
    """The folder of a run of ours; None for what another tool saved.

    A path that is neither is returned as it is: opening it as a run then says what is missing.

    Raises:
        CorruptError: a folder that is no run has damaged weights or settings.
    """
    text, path = str(source), Path(source).expanduser()
    if path.exists():
        if path.is_dir() and _is_run(path):
            return path
        if matching(path):
            return None
        check_readable(path)
        return path
    if Path(split_layer(source)[0]).expanduser().exists():
        return None
    if text.startswith((".", "~", "/")) or not {"/", ":"} & set(text):
        return path
    from sae.interop.registry import named

    if ":" in text or named(text) is not None:
        return None
    try:
        folder = saved.locate_run(text)
    except ConfigError:  # the hub has no such repository; the search for another tool's says so
        return None
    return folder if _is_run(folder) else None


def as_run(
    source: str | Path,
    *,
    command: str,
    dataset: str | None = None,
    text_field: str | None = None,
    device: Device = "auto",
    with_text: bool = True,
) -> str:
    """The run folder of a source: itself or, for another tool's files, an import of them, which is kept in the cache.

    Args:
        source: as in `load`.
        command: which needs the run, for messages.
        dataset: text for a new import.
        text_field: column of it.
        device: where the language model of a new import runs.
        with_text: whether the command needs text; without, the import is weights alone.

    Raises:
        ConfigError: text, a language model or a site is missing; the message has the command that names them.
    """
    if own_run(source) is not None:
        return str(source)
    from sae.base.progress import Progress
    from sae.interop.importing import import_run
    from sae.interop.sources import fetch

    place, layer = split_layer(source)
    with Progress() as progress:
        fetched = fetch(place, progress.say)
        if _is_run(fetched.path):
            return str(fetched.path)
        format = recognised(fetched.path) if fetched.format == "auto" else fetched.format
        kept = cache_dir() / "imported" / _key(fetched.path, format, layer)
        said = f"{source}: another tool's files, kept as the run"
        if with_text and dataset is None and len(runs := _with_text(kept)) == 1:
            progress.say(f"{said} {runs[0]}")
            return str(runs[0])
        folder = kept / _name_of(dataset, text_field)
        if folder.exists():
            progress.say(f"{said} {folder}")
            return str(folder)
        origin = fetched.completed(read(fetched.path if layer is None else f"{fetched.path}:{layer}", format).origin)
        missing = [name for name, value in (("model", origin.model), ("site", origin.sites)) if not value]
        if with_text and (dataset is None or missing):
            flags = "".join(f" --{name} {name.upper()}" for name in missing)
            raise ConfigError(
                f"{source}: another tool's files ({origin.tool}), of which sae {command} needs a run; make one with: "
                f"sae import {source} --out runs/NAME --dataset {dataset or 'demo'}{flags}"
            )
    import_run(source, ImportConfig(out=folder, format=format, dataset=dataset, text_field=text_field, device=device))
    print(f"{said} {folder}", file=sys.stderr)
    return str(folder)


def _with_text(folder: Path) -> list[Path]:
    """The imports with text in a folder of the cache."""
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [run for run in names if (run / saved.CONFIG).is_file() and kind_of(run) == "language"]


def _is_run(folder: Path) -> bool:
    """Whether a folder has the record of a run, finished or not."""
    path = folder / saved.CONFIG
    record = read_json(path) if path.is_file() else None
    return isinstance(record, dict) and ("autoencoder" in record or {"format", "kind"} <= set(record))


def _name_of(dataset: str | None, text_field: str | None) -> str:
    path = Path(dataset or "").expanduser()
    place = str(path.absolute()) if dataset and path.exists() else dataset
    return _hash([place, text_field])


def _key(path: Path, format: str, layer: int | None) -> str:
    """Of the content of the files that an import reads, and how it reads them."""
    from sae import __version__

    folder = path if path.is_dir() else path.parent
    files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path, *folder.glob("*.json")]
    files += [folder.parent / name for name in OUTSIDE if (folder.parent / name).is_file()]
    # a folder's name may be its site
    return _hash([__version__, format, layer, path.name, [(file.name, sha256_of(file)) for file in files]])


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
