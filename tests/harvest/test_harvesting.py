"""`sae harvest`: several places in one pass into a store that runs are trained from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.cli.harvest import with_layers
from sae.cli.main import main, parse
from sae.config import ConfigError
from sae.training.run import train


def arguments(model: Path, corpus: Path, store: object, *more: object) -> list[str]:
    given = (
        "harvest", "--model", model, "--dataset", corpus, "--layer", "0,1", "--tokens", 3000, "--context", 64,
        "--contexts", 4, "--store", store, *more,
    )  # fmt: skip
    return [str(argument) for argument in given]


def training(model: Path, corpus: Path, store: object, out: Path, *more: object) -> list[str]:
    given = (
        "train", "--model", model, "--dataset", corpus, "--layer", 1, "--tokens", 3000, "--context", 64,
        "--contexts", 4, "--width", 64, "--k", 4, "--batch", 256, "--store", store, "--out", out, *more,
    )  # fmt: skip
    return [str(argument) for argument in given]


def test_layers_with_commas_are_places_of_one_pass() -> None:
    assert with_layers(["--layer", "6,9", "--tokens", "5"]) == ["--tokens", "5", "--site", "resid_post.6,resid_post.9"]
    assert with_layers(["--layer=6,9", "--site=mlp_in,mlp_out"])[-1] == "mlp_in.6,mlp_in.9,mlp_out.6,mlp_out.9"
    assert with_layers(["--layer", "6"]) == ["--layer", "6"]
    with pytest.raises(ConfigError, match="--layer 6,x: expected layers"):
        with_layers(["--layer", "6,x"])


def test_a_run_is_trained_from_a_harvest_of_more_places(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    main(arguments(tiny_model, corpus, tmp_path / "store"))
    command = parse(training(tiny_model, corpus, tmp_path / "store", tmp_path / "run"))
    result = train(command.config)
    assert result.available == 3000
    assert result.harvested.get("ordinary", 0) == 0
