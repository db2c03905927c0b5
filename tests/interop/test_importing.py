"""Another tool's autoencoder becomes a run that every command reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sae
from finished_runs import finished_run
from sae.cli.main import parse
from sae.config import ConfigError


def sparsify_folder(folder: Path, run, **changes) -> Path:
    """The finished run's TopK autoencoder as sparsify would save it, at the output of block 1."""
    model = run.model
    where = folder / "layers.1"
    where.mkdir(parents=True)
    weights = {
        "encoder.weight": model.W_enc,
        "encoder.bias": model.b_enc,
        "W_dec": model.dictionary.W,
        "b_dec": model.dictionary.b,
    }
    save_file({name: t.detach().clone() for name, t in weights.items()}, where / "sae.safetensors")
    settings = {"k": model.code.k, "num_latents": model.width, "d_in": model.dim, "activation": "topk", **changes}
    (where / "cfg.json").write_text(json.dumps(settings))
    return where


def test_an_imported_run_is_evaluated_and_collected_like_ours(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run = finished_run(tiny_model, corpus)
    theirs = sparsify_folder(tmp_path, run)
    out = tmp_path / "imported"
    arguments = ["--model", tiny_model, "--dataset", corpus, "--context", 64, "--out", out]
    shown = parse([str(a) for a in ("import", theirs, *arguments)]).run()
    assert shown["format"] == "sparsify"
    x = torch.randn(16, run.model.dim, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sae.load(out).encode(x).to_dense(), run.model.encode(x).to_dense(), atol=1e-6)
    evaluation = ["--tokens", "2048", "--downstream-tokens", "512", "--pca-tokens", "2048"]
    ours, imported = (parse(["eval", str(folder), *evaluation]).run() for folder in (run.folder, out))
    assert imported["fvu"]["value"] == pytest.approx(ours["fvu"]["value"], rel=1e-4)
    assert imported["downstream"]["delta_ce"]["value"] == pytest.approx(
        ours["downstream"]["delta_ce"]["value"], abs=1e-4
    )
    assert parse(["features", str(out), "--tokens", "2048"]).run()["latents"] == run.model.width


def test_without_text_it_is_only_loaded_and_verified(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    theirs = sparsify_folder(tmp_path, finished_run(tiny_model, corpus))
    parse(["import", str(theirs), "--out", str(tmp_path / "out")]).run()
    assert parse(["verify", str(tmp_path / "out")]).run()["verified"]
    with pytest.raises(ConfigError, match="import it again with --dataset"):
        parse(["eval", str(tmp_path / "out")]).run()


def test_nothing_is_left_of_a_refused_import(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    theirs = sparsify_folder(tmp_path, finished_run(tiny_model, corpus), d_in=99)
    with pytest.raises(ValueError, match="d_in is 99"):
        parse(["import", str(theirs), "--out", str(tmp_path / "out")]).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layers.1"]
