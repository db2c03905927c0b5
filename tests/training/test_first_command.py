"""The first command that a user types works on every family: train, eval and features without a flag on precision."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_tiny_model
from sae.base.files import publish_json, read_json
from sae.cli.main import main
from sae.selftest.world import byte_tokenizer
from sae.training.trainer import Trainer


def scaled(family: str, folder: Path, tensor: str, factor: float, rows: slice = slice(None)) -> Path:
    """A tiny model of a family with some rows of a tensor scaled."""
    from safetensors.torch import load_file, save_file

    save_tiny_model(family, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor][rows] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    stop = byte_tokenizer(300).convert_tokens_to_ids(".")
    assert isinstance(stop, int)
    return {
        "gemma3": scaled("gemma3", folder / "gemma3", "model.embed_tokens.weight", 3e4),
        # the full stop ends a document: a token whose norm is far over the others' stands for an attention sink
        "qwen2": scaled("qwen2", folder / "qwen2", "model.embed_tokens.weight", 1e5, slice(stop, stop + 1)),
        "gpt2": save_tiny_model("gpt2", folder / "gpt2"),
    }


def arguments(model: Path, corpus: Path, out: Path, **flags: Any) -> list[str]:
    given = {"layer": 1, "context": 64, "contexts": 4, "tokens": 1024, "batch": 128, "width": 64, "k": 4, **flags}
    return [str(a) for a in ("train", "--model", model, "--dataset", corpus, "--out", out)] + [
        text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def kept_in(run: Path) -> str:
    return read_json(run / "config.json")["harvest"]["store_precision"]


@pytest.mark.parametrize(("family", "precision"), [("gemma3", "bfloat16"), ("qwen2", "float16"), ("gpt2", "float16")])
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_first_command_works_and_says_in_what_activations_wait(
    family: str,
    precision: str,
    epochs: int,
    models: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    main(arguments(models[family], corpus, run, epochs=epochs))
    assert f"Activations are kept in {precision}: " in capsys.readouterr().err
    assert kept_in(run) == precision
    main(["eval", str(run), "--tokens", "500", "--downstream-tokens", "128", "--pca-tokens", "500", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["fvu"]["value"] < 1
    if epochs == 1:
        main(["features", str(run), "--tokens", "1000", "--json"])
        assert json.loads(capsys.readouterr().out)["fired"] > 0


def test_sinks_count_only_where_they_are_kept(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    main(arguments(models["qwen2"], corpus, tmp_path / "run", max_norm=0))
    assert kept_in(tmp_path / "run") == "bfloat16"


def test_an_existing_store_keeps_its_precision(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    main(arguments(models["gpt2"], corpus, tmp_path / "a", store=store, store_precision="float32"))
    main(arguments(models["gpt2"], corpus, tmp_path / "b", store=store))
    assert kept_in(tmp_path / "b") == read_json(store / "identity.json")["precision"] == "float32"
    with pytest.raises(SystemExit):
        main(arguments(models["gpt2"], corpus, tmp_path / "c", store=store, store_precision="float16"))


def test_a_resumed_run_keeps_the_precision_of_its_record(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags: dict[str, Any] = {"checkpoint_every": 256, "store_precision": "bfloat16"}
    main(arguments(models["gpt2"], corpus, whole, **flags))
    step = Trainer.step

    def stopping(self: Trainer, *batch: torch.Tensor) -> None:
        step(self, *batch)
        if self.taken == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        with pytest.raises(SystemExit):
            main(arguments(models["gpt2"], corpus, run, checkpoint_every=256))
    assert kept_in(run) == "float16"
    # what was chosen is what counts, and not what a new look would choose
    record = read_json(run / "config.json")
    record["harvest"]["store_precision"] = "bfloat16"
    publish_json(run / "config.json", record)
    shutil.rmtree(run / "checkpoints")
    main(["train", "--resume", "--out", str(run)])
    assert kept_in(run) == "bfloat16"
    assert (run / "sae.safetensors").read_bytes() == (whole / "sae.safetensors").read_bytes()


def test_one_store_holds_a_large_and_a_small_layer(corpus: Path, tmp_path: Path) -> None:
    model = scaled("llama", tmp_path / "model", "model.layers.1.mlp.down_proj.weight", 1e6)
    given = arguments(model, corpus, tmp_path / "sweep", layer="0,1")
    store = ["--store", str(tmp_path / "sweep" / "store")]
    main(["sweep", *given[1:], *store, "--evaluate-tokens", "300", "--downstream-tokens", "0"])
    assert read_json(tmp_path / "sweep" / "store" / "identity.json")["precision"] == "bfloat16"
    assert [kept_in(tmp_path / "sweep" / name) for name in ("layer0", "layer1")] == ["bfloat16"] * 2
    rows = read_json(tmp_path / "sweep" / "comparison.json")["rows"]
    assert all(0 < row["fvu"]["value"] < 1 for row in rows)
