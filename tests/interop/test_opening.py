"""Another tool's files wherever a run is expected: `sae.load`, and every command, which keeps the import."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sae
from finished_runs import finished_run
from foreign_files import sparsify_folder
from sae.base.files import read_json
from sae.browser.opened import BrowsedRun
from sae.cli.main import main, parse
from sae.cli.sources import on_runs
from sae.config import ConfigError

EVAL = ["--tokens", "1024", "--downstream-tokens", "256", "--pca-tokens", "0", "--resamples", "20"]


def run(*arguments: Any) -> dict[str, Any]:
    return on_runs(parse([str(argument) for argument in arguments])).run()


@pytest.fixture
def theirs(tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    folder = sparsify_folder(tmp_path / "theirs", finished_run(tiny_model, corpus))
    (folder.parent / "config.json").write_text(json.dumps({"model": str(tiny_model), "ctx_len": 64}))
    return folder


def test_load_opens_ours_and_theirs(tiny_model: Path, corpus: Path, theirs: Path) -> None:
    ours = finished_run(tiny_model, corpus)
    x = torch.randn(16, ours.model.dim, generator=torch.Generator().manual_seed(0))
    codes = [sae.load(place).encode(x).to_dense() for place in (ours.folder, theirs, theirs / "sae.safetensors")]
    for other in codes[1:]:
        torch.testing.assert_close(other, codes[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="no layers to select"):
        sae.load(f"{theirs}:3")


def test_a_path_that_is_neither_is_refused_as_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ConfigError, match=r"not a run folder, it has no config\.json"):
        sae.load(tmp_path)
    with pytest.raises(ConfigError, match="no such run folder"):
        sae.load(tmp_path / "missing")


def test_commands_import_what_names_its_model_and_keep_the_import(
    theirs: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=f"sae import {theirs} --out runs/NAME --dataset demo$"):
        run("eval", theirs)
    report = run("eval", theirs, "--dataset", corpus, *EVAL)
    assert (report["tool"], report["format"]) == ("sparsify", "sparsify")
    assert "kept as the run" in capfd.readouterr().err
    kept = Path(report["run"])
    assert kept.is_relative_to(tmp_path / "cache")
    assert read_json(kept / "eval.json")["tool"] == "sparsify"
    # without --dataset the import is found again, by the Python at the end too
    main(["features", str(theirs), "--tokens", "2048"])
    printed = capfd.readouterr().out
    assert "sae.collect(" in printed
    assert "as_run(" in printed
    assert f'"{theirs}"' in printed
    features = kept / "features.sqlite"
    assert features.is_file()
    assert run("verify", theirs)["verified"]
    latent = 5
    steered = run("steer", theirs, "--latent", latent, "--prompt", "One", "--tokens", 4)
    assert steered
    assert run("explain", theirs, "--latents", latent)
    run("export", theirs, "--to", "static", "--out", tmp_path / "page", "--latents", latent)
    run("export", theirs, "--to", "neuronpedia", "--out", tmp_path / "rows")
    assert (tmp_path / "page" / "index.html").is_file()
    browsed = BrowsedRun(kept)
    assert browsed.info()["features"]["width"] == 128
    assert browsed.report()["config"]["imported"]["tool"] == "sparsify"
    # other content is another import
    changed = tmp_path / "copy" / theirs.name
    shutil.copytree(theirs, changed)
    shutil.copy(theirs.parent / "config.json", changed.parent)
    settings = json.loads((changed / "cfg.json").read_text())
    (changed / "cfg.json").write_text(json.dumps(settings | {"k": 3}))
    assert run("eval", changed, "--dataset", corpus, *EVAL)["run"] != report["run"]


def test_a_model_that_the_files_do_not_name_is_asked_for(theirs: Path, corpus: Path) -> None:
    (theirs.parent / "config.json").unlink()
    with pytest.raises(ConfigError, match=f"--out runs/NAME --dataset {corpus} --model MODEL$"):
        run("eval", theirs, "--dataset", corpus)
