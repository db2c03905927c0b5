"""Steering measured: the response grows with the dose, controls stand beside it, and a strength is proposed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sae
from finished_runs import collected_run
from sae.config import ConfigError, SteerMeasureConfig
from sae.evaluation.bootstrap import Interval
from sae.features.steer.inject import SteerError
from sae.features.steer.measure import LATENT, RANDOM, measure_steering, propose
from sae.features.store.annotations import Annotations
from sae.features.store.store import FeatureStore

SMALL: dict[str, Any] = {"prompts": 6, "prompt_tokens": 8, "tokens": 8, "resamples": 50}


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steered") / "run"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    return folder


@pytest.fixture(scope="module")
def latent(run: Path) -> int:
    """One that fires on about one token in ten, so that its controls can be learnt."""
    density = torch.from_numpy(FeatureStore(run).scalars["density"].copy())
    return int((density - 0.1).abs().argmin())


@pytest.fixture(scope="module")
def measured(run: Path, latent: int) -> dict[str, Any]:
    config = SteerMeasureConfig(latent=(latent,), doses=(0.5, 8.0), **SMALL)
    (result,) = measure_steering(run, config)["latents"]
    return result


def rows_of(measured: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [row for row in measured["rows"] if row["method"] == method]


def test_every_method_is_measured_at_every_dose(measured: dict[str, Any]) -> None:
    for method in ("latent", "random latents", "mean difference", "probe"):
        assert [row["dose"] for row in rows_of(measured, method)] == [0.5, 8.0], method
    assert len(rows_of(measured, "prompt")) == 1
    assert not measured["left_out"]


def test_unsteered_text_costs_nothing(measured: dict[str, Any]) -> None:
    (plain,) = rows_of(measured, "none")
    assert plain["loss_added"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_stronger_push_moves_the_text_further_from_what_the_model_writes(measured: dict[str, Any]) -> None:
    weak, strong = rows_of(measured, LATENT)
    assert strong["loss_added"]["value"] > weak["loss_added"]["value"]
    assert strong["text"] != weak["text"]


def test_the_difference_to_random_latents_is_that_of_the_responses(measured: dict[str, Any]) -> None:
    for mine, random in zip(rows_of(measured, LATENT), rows_of(measured, RANDOM), strict=True):
        difference = mine["response"]["value"] - random["response"]["value"]
        assert mine["over_random"]["value"] == pytest.approx(difference, abs=1e-9)


def test_the_result_is_kept_for_the_page(run: Path, latent: int, measured: dict[str, Any]) -> None:
    assert Annotations(run).steering()[latent] == measured


def test_equal_seeds_give_equal_numbers(run: Path, latent: int, measured: dict[str, Any]) -> None:
    config = SteerMeasureConfig(latent=(latent,), doses=(0.5, 8.0), **SMALL)
    assert sae.measure_steering(run, config)["latents"] == [measured]


def row(dose: float, response: float, added: float, over: tuple[float, float]) -> dict[str, Any]:
    point = Interval(response, response - 0.01, response + 0.01)
    return {
        "method": LATENT,
        "dose": dose,
        "response": point,
        "loss_added": Interval(added, added, added),
        "over_random": Interval(sum(over) / 2, *over),
    }


def test_the_smallest_dose_near_the_best_fluent_response_is_proposed() -> None:
    rows = [
        row(0.5, 0.1, 0.0, (0.05, 0.2)),
        row(1.0, 0.55, 0.1, (0.3, 0.6)),
        row(2.0, 0.6, 0.3, (0.4, 0.7)),
        row(4.0, 0.9, 2.0, (0.5, 0.9)),
    ]
    assert propose(rows)["dose"] == 1.0
    assert propose(rows[-1:])["dose"] is None
    assert "nats" in propose(rows[-1:])["why"]
    silent = propose([row(1.0, 0.1, 0.1, (-0.1, 0.1))])
    assert silent["dose"] is None
    assert "random latents" in silent["why"]


def test_wrong_latents_and_settings_are_refused(run: Path) -> None:
    with pytest.raises(SteerError, match="--latent 999: the run has latents 0 to 127"):
        measure_steering(run, SteerMeasureConfig(latent=(999,), **SMALL))
    with pytest.raises(ConfigError, match=r"--doses .*more than 0"):
        SteerMeasureConfig(latent=(1,), doses=(0.0,))
    with pytest.raises(ConfigError, match="each latent once"):
        SteerMeasureConfig(latent=(1, 1))
