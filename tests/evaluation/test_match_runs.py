"""`sae match` on runs: planted copies of a trained run, another seed, another width, a checkpoint, and its files."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sae
from finished_runs import finished_run
from made_runs import SETTINGS, made_run
from sae.base.files import publish_json, read_json
from sae.cli.main import main, parse
from sae.config import ConfigError, EvalConfig, MatchConfig
from sae.evaluation.matching.pool import narrowed
from sae.evaluation.matching.run import match
from sae.evaluation.matching.scores import read_scores
from sae.evaluation.run import evaluate
from sae.models.saved import CONFIG, WEIGHTS, load, save_weights

FEW = MatchConfig(tokens=1_500, resamples=20)


@pytest.fixture
def run(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """A run of 128 latents that a test may write to."""
    return Path(shutil.copytree(finished_run(tiny_model, corpus).folder, tmp_path / "run"))


@pytest.fixture
def other_seed(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run(tiny_model, corpus, seed=1).folder, tmp_path / "seed1"))


def planted(run: Path, name: str, latents: torch.Tensor) -> Path:
    """A run with these latents of another, in this order."""
    folder = run.with_name(name)
    folder.mkdir()
    record = copy.deepcopy(read_json(run / CONFIG))
    model = narrowed(load(run), latents)
    record["autoencoder"] = save_weights(folder, model, load_file(run / WEIGHTS)["selftest.inputs"])
    publish_json(folder / CONFIG, record)
    return folder


def test_a_permuted_copy_is_the_same_and_every_latent_is_wholly_stable(run: Path, tmp_path: Path) -> None:
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    permuted = planted(run, "permuted", order)
    report = match([run, permuted], MatchConfig(tokens=1_500, resamples=20, out=tmp_path / "out"))
    (pair,) = report["pairs"]
    assert "began alike" in report["notes"][0]
    live = report["runs"][0]["compared"]
    assert 60 < live <= 128
    for what in ("atoms", "activations"):
        assert pair[what]["mcc"]["value"] == pytest.approx(1, abs=1e-5)
        assert pair[what]["chance"]["mcc"]["value"] < 0.7
    assert pair["counts"] == {**dict.fromkeys(pair["counts"], 0), "matched": live}
    assert all(order[j] == i for i, j in pair["relations"]["matched"]), "latents are named by their numbers in the run"
    for folder in (run, permuted):
        scores = read_scores(folder, read_json(folder / CONFIG)["autoencoder"]["sha256"])
        assert scores is not None
        known = np.isfinite(scores.stability)
        assert known.sum() == live
        np.testing.assert_allclose(scores.stability[known], 1, atol=1e-5)
        assert 0 < scores.info["chance_mean"] < scores.info["chance"] < 1
    assert json.loads((tmp_path / "out/match.json").read_text())["pairs"] == report["pairs"]
    assert "chance" in (tmp_path / "out/match.md").read_text()


def test_another_seed_is_less_alike_than_a_copy_and_a_latent_left_out_is_gone(run: Path, other_seed: Path) -> None:
    kept = torch.tensor([i for i in range(128) if i % 2])
    half = planted(run, "half", kept)
    report = match([run, half, other_seed], MatchConfig(tokens=0, resamples=20))
    copies, seeds, _ = report["pairs"]
    assert copies["atoms"]["mcc"]["value"] == pytest.approx(1, abs=1e-5)
    assert seeds["atoms"]["mcc"]["value"] < 0.9
    assert {j for _, j in copies["relations"]["matched"]} <= set(range(64))
    assert not {i for i, _ in copies["relations"]["matched"]} & set(range(0, 128, 2))
    assert all(i % 2 == 0 for i in copies["relations"]["gone"])
    assert copies["relations"]["new"] == []
    assert report["notes"] == []
    low, high = (report["mean_mcc"][bound] for bound in ("low", "high"))
    assert low < report["mean_mcc"]["value"] < high


def test_the_pool_holds_the_stable_latents_unchanged_and_is_evaluated_like_any_run(
    run: Path, other_seed: Path, tmp_path: Path
) -> None:
    half = planted(run, "half", torch.arange(64))
    pool = tmp_path / "pool"
    report = match([run, half], MatchConfig(tokens=1_500, resamples=20, pool=pool, at_least=0.99))
    latents = read_json(pool / CONFIG)["pooled"]["latents"]
    assert report["pool"]["latents"] == len(latents) <= 64
    assert set(latents) <= set(range(64))
    assert max(sae.verify(pool)) < 1e-3
    whole, pooled = sae.load(run), sae.load(pool)
    assert pooled.dictionary.W.equal(whole.dictionary.W[latents])
    assert pooled.W_enc.equal(whole.W_enc[latents])
    few = EvalConfig(tokens=1_024, downstream_tokens=0, pca_tokens=256, resamples=20)
    # some of the latents explain less than all of them, and more than nothing
    assert evaluate(run, few)["fvu"]["value"] < evaluate(pool, few)["fvu"]["value"] < 1
    with pytest.raises(ConfigError, match=r"no latent of .* is that stable; the best has 0"):
        match([run, other_seed], MatchConfig(tokens=0, resamples=20, pool=tmp_path / "none", at_least=1.0))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pool_of_any_variant_encodes_as_before(name: str, tmp_path: Path) -> None:
    model = load(made_run(tmp_path / "run", name))
    x = torch.randn(50, model.dim, generator=torch.Generator().manual_seed(0))
    kept = torch.arange(1, model.width, 3)
    whole, some = narrowed(model, torch.arange(model.width)), narrowed(model, kept)
    torch.testing.assert_close(whole(x).reconstruction, model(x).reconstruction)
    assert some.encode(x).to_dense().shape == (50, len(kept))
    if "k" not in model.code.describe():
        # each latent has a threshold of its own, whatever the others do
        torch.testing.assert_close(some.encode(x).to_dense(), model.encode(x).to_dense()[:, kept])


def test_runs_of_other_widths_are_matched_by_activations_alone(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    record = read_json(run / CONFIG)
    arguments = [
        "train", "--model", tiny_model, "--dataset", record["train"]["harvest"]["dataset"], "--site",
        "resid_post.1+resid_post.2", "--variant", "crosscoder", "--width", 64, "--k", 8, "--tokens", 4_096,
        "--batch", 256, "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--out", tmp_path / "joined",
    ]  # fmt: skip
    parse([str(a) for a in arguments]).run()
    (pair,) = (report := match([run, tmp_path / "joined"], FEW))["pairs"]
    assert pair["atoms"] is None
    assert pair["relations"] is None
    assert pair["activations"]["mcc"]["value"] > pair["activations"]["chance"]["mcc"]["value"]
    assert report["mean_mcc"] is None
    assert report["runs"][0]["stability"]["mean"] > 0.1
    with pytest.raises(ConfigError, match="no two of these runs can be compared"):
        match([run, tmp_path / "joined"], MatchConfig(tokens=0))


def test_a_checkpoint_is_matched_by_its_atoms(
    run: Path, tiny_model: Path, corpus: Path, tmp_path: Path, train_arguments: list[object]
) -> None:
    main([str(a) for a in [*train_arguments, "--checkpoint-every", "16", "--out", tmp_path / "kept", "--json"]])
    checkpoints = sorted((tmp_path / "kept/checkpoints").iterdir())
    if not checkpoints:
        pytest.fail("the run left no checkpoint to match")
    report = match([tmp_path / "kept", checkpoints[-1]], FEW)
    (pair,) = report["pairs"]
    assert pair["atoms"]["mcc"]["value"] > 0.9
    assert pair["activations"] is None
    assert "checkpoint" in report["activations_missing"][0]
    assert not (checkpoints[-1] / "stability.npz").exists()


def test_what_cannot_be_matched_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    for runs, words in (([run], "two or more different runs"), ([run, run], "two or more different runs")):
        with pytest.raises(ConfigError, match=words):
            match(runs, FEW)
    with pytest.raises(ConfigError, match=f"--out {run}: exists already"):
        match([run, tmp_path / "missing"], MatchConfig(out=run))
    with pytest.raises(ConfigError, match=r"--at-least 0.5: applies to --pool"):
        MatchConfig(at_least=0.5)


def test_the_command_prints_a_table_and_one_json_line(
    run: Path, other_seed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["match", str(run), str(other_seed), "--tokens", "0", "--resamples", "20"]
    main(line)
    said = capsys.readouterr().out
    assert "run / seed1" in said
    assert "stability.run.mean" in said
    main([*line, "--json"])
    assert json.loads(capsys.readouterr().out)["pairs"][0]["atoms"]["mcc"]["value"] > 0
