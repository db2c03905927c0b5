"""A finished tiny run, trained once a session whichever test file asks first."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from sae.cli.main import parse
from sae.config import CollectConfig
from sae.features.collect.collect import collect
from sae.runs.text import Run, open_run


@functools.cache
def finished_run(model: Path, corpus: Path, *, k: int = 8, seed: int = 0, width: int = 128) -> Run:
    """A TopK run of 128 latents on the tiny Llama; its features are not collected."""
    folder = Path(tempfile.mkdtemp(dir=model.parent)) / "run"
    arguments = [
        "train", "--model", model, "--dataset", corpus, "--layer", 1, "--width", width, "--k", k, "--tokens", 12_288,
        "--batch", 256, "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--log-every", 4, "--seed", seed,
        "--out", folder,
    ]  # fmt: skip
    parse([str(a) for a in arguments]).run()
    return open_run(folder)


@functools.cache
def collected_run(model: Path, corpus: Path) -> Run:
    """A copy of `finished_run` with the features of 8,192 tokens."""
    finished = finished_run(model, corpus)
    folder = finished.folder.with_name("collected")
    shutil.copytree(finished.folder, folder)
    collect(folder, CollectConfig(tokens=8_192))
    return open_run(folder)
