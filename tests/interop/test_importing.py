"""Another tool's autoencoder becomes a run that every command reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sae
from finished_runs import finished_run
from foreign_files import sparsify_folder
from sae.cli.main import parse
from sae.config import ConfigError
from sae.harvest.hooks import capture, splice
from sae.runs.text import open_run


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


def test_a_layer_of_a_cross_layer_transcoder_is_measured_at_all_its_targets(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    d, width = json.loads((tiny_model / "config.json").read_text())["hidden_size"], 64
    generator = torch.Generator().manual_seed(0)
    weights = {"W_E": torch.randn(3, d, width, generator=generator) / d, "b_E": torch.zeros(3, width)}
    for layer in range(3):
        weights[f"W_D.{layer}"] = torch.randn(layer + 1, width, d, generator=generator) / width
        weights[f"b_D.{layer}"] = torch.randn(d, generator=generator)
    theirs = tmp_path / "clt"
    theirs.mkdir()
    save_file(weights, theirs / "sae_weights.safetensors")
    hooks = {"hook_points_in": "blocks.{}.hook_resid_pre", "hook_points_out": "blocks.{}.hook_mlp_out"}
    settings = {name: [hook.format(layer) for layer in range(3)] for name, hook in hooks.items()}
    settings |= {"sae_type": "clt", "d_model": d, "expansion_factor": width / d, "norm_activation": "inference"}
    (theirs / "config.json").write_text(json.dumps(settings))
    out, arguments = tmp_path / "out", ["--model", tiny_model, "--dataset", corpus, "--context", 64]
    shown = parse([str(a) for a in ("import", f"{theirs}:1", *arguments, "--out", out)]).run()
    assert shown["target_site"] == "blocks.1.hook_mlp_out, blocks.2.hook_mlp_out"
    run = open_run(out)
    assert [site.name for site in run.targets] == ["mlp_out.1", "mlp_out.2"]
    assert run.model.dictionary.b[d:].abs().sum() == 0
    evaluation = ["--tokens", "1024", "--downstream-tokens", "512", "--pca-tokens", "1024", "--resamples", "20"]
    report = parse(["eval", str(out), *evaluation]).run()
    assert report["target_site"] == "mlp_out.1, mlp_out.2"
    assert report["downstream"]["delta_ce"]["value"] != 0
    # each target gets its own part of the reconstruction
    lm = run.load_language_model(torch.device("cpu"))
    ids = torch.arange(3, 19).unsqueeze(0)
    replaced = torch.randn(1, 16, 2 * d, generator=generator)
    parts = replaced.split(d, dim=-1)
    spliced = {site: lambda _, part=part: part for site, part in zip(run.targets, parts, strict=True)}
    with torch.no_grad(), splice(lm.model, spliced), capture(lm.model, run.targets, stop=False) as captured:
        lm.model(input_ids=ids)
    for site, part in zip(run.targets, parts, strict=True):
        torch.testing.assert_close(captured.activations[site.name], part)
