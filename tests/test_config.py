"""Settings: JSON round trip, refusals that name field and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.base.files import read_json
from sae.config import (
    ConfigError,
    EvalConfig,
    HarvestConfig,
    ImageTrainConfig,
    OptimConfig,
    SAEConfig,
    TrainConfig,
    VisionConfig,
    from_json,
    to_json,
)

OLD_RUNS = Path(__file__).parent / "old_runs"
"""Runs that an earlier version made, before variants had settings classes of their own."""


def some_config() -> TrainConfig:
    return TrainConfig(
        harvest=HarvestConfig(model="m", dataset="d", layer=3, site="mlp_out"),
        sae=SAEConfig(width=64, k=4),
        optim=OptimConfig(lr=1e-3),
        out=Path("runs/x"),
        store=Path("s"),
    )


def test_json_round_trip() -> None:
    config = some_config()
    assert from_json(TrainConfig, to_json(config)) == config


def test_settings_of_an_old_run_load() -> None:
    text = read_json(OLD_RUNS / "text" / "config.json")["train"]
    config = from_json(TrainConfig, text)
    assert config.sae == SAEConfig(variant="jumprelu", width=64, k=4, recipe="anthropic", bandwidth=1.5)
    images = read_json(OLD_RUNS / "image" / "config.json")["train"]
    image_config = from_json(ImageTrainConfig, images)
    assert image_config.vision == VisionConfig(variant="beta_vae", width=4, hidden=(8,), beta=3.0, gamma=100.0)
    # and keep their names and values where they are written again
    for part in ("sae", "optim"):
        assert to_json(config)[part].items() >= text[part].items()
    assert to_json(image_config)["vision"] == images["vision"]


def test_unknown_field_names_the_nearest() -> None:
    values = to_json(some_config())
    values["harvest"]["lyer"] = 3
    with pytest.raises(ConfigError, match=r"config\.harvest\.lyer: unknown field; did you mean 'layer'"):
        from_json(TrainConfig, values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tokens", "many", "expected int, got 'many'"),
        ("tokens", True, "expected int"),
        ("wandb", "maybe", "not one of off, offline, online"),
        ("harvest", [1], "expected an object"),
        ("store", 3, "expected str"),
    ],
)
def test_wrong_types_are_refused(path: str, value: object, message: str) -> None:
    values = to_json(some_config())
    values[path] = value
    with pytest.raises(ConfigError, match=message):
        from_json(TrainConfig, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAEConfig(k=0), "--k 0: expected at least 1"),
        (lambda: SAEConfig(width=16, k=17), "--k 17: expected at most the number of latents, --width 16"),
        (lambda: SAEConfig(width=0), "--width 0"),
        (lambda: HarvestConfig(model="", dataset="d"), "--model"),
        (lambda: HarvestConfig(model="m", dataset="d", layer=-1), "--layer -1"),
        (lambda: HarvestConfig(model="m", dataset="d", heldout=1.0), r"--heldout 1\.0"),
        (lambda: OptimConfig(lr=0), "--lr 0"),
        (lambda: OptimConfig(beta2=1), "--beta2 1"),
        (lambda: EvalConfig(resamples=1), "--resamples 1"),
    ],
)
def test_out_of_range_names_flag_and_value(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
