"""`sae train` for every variant on the tiny model, from one store: it trains, saves, loads, and `sae verify` passes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sae
from sae.cli import main as cli
from sae.config import ConfigError, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.models.language import VARIANTS
from sae.models.saved import verify
from sae.runs.text import open_run
from sae.training.plan import Plan, make_plan
from sae.training.run import train
from sae.training.space import estimate
from sae.training.text import TextData

ONE, TWO = "resid_post.1", "resid_post.1,resid_post.2"
TOKENS = 2048


def sites_of(variant: str) -> dict[str, Any]:
    """Settings of the harvest that a variant wants."""
    row = VARIANTS[variant]
    if row.transcodes:
        return {"site": "mlp_in.1", "target_site": "mlp_out.1"}
    return {"site": TWO if row.several_sites else ONE}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each harvest is kept for all tests that want the same one."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def config(tiny_model: Path, corpus: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        harvest=HarvestConfig(model=str(tiny_model), dataset=str(corpus), site=ONE, context=64, contexts=8),
        sae=SAEConfig(width=96, k=4),
        optim=OptimConfig(batch=128),
        out=tmp_path / "run",
        tokens=TOKENS,
        buffer_mb=1,
        log_every=4,
        device="cpu",
    )


def changed(
    config: TrainConfig, *, harvest: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, **sae: Any
) -> TrainConfig:
    return dataclasses.replace(
        config,
        harvest=dataclasses.replace(config.harvest, **(harvest or {})),
        sae=dataclasses.replace(config.sae, **sae),
        optim=dataclasses.replace(config.optim, **(optim or {})),
    )


def text_of(plan: Plan) -> TextData:
    assert isinstance(plan.data, TextData)
    return plan.data


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_trains_saves_and_loads(
    variant: str, config: TrainConfig, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = sites_of(variant)
    config = changed(config, harvest=place, variant=variant)
    config = dataclasses.replace(config, store=stores / place["site"].replace(",", "+"), epochs=2)
    result = train(config)
    assert result.steps == 2 * TOKENS // 128
    assert result.route == ("autograd" if variant == "matching_pursuit" else "fused")
    assert 0 < result.last["fvu"] < 1.5
    run = open_run(config.out)
    assert [site.name for site in run.inputs] == place["site"].split(",")
    assert [site.name for site in run.targets] == place.get("target_site", place["site"]).split(",")
    x = torch.randn(20, run.model.dim)
    with torch.no_grad():
        codes, reconstruction = run.model(x)
    assert codes.to_dense().shape == (20, 96)
    assert reconstruction.shape == (20, run.model.dim_out)
    assert torch.isfinite(reconstruction).all()
    assert max(verify(config.out)) < 1e-5


def test_the_command_line_trains_a_transcoder_and_a_crosscoder(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: list[object] = [
        "train", "--model", tiny_model, "--dataset", corpus, "--width", 64, "--k", 4, "--tokens", 1024, "--batch", 128,
        "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--json",
    ]  # fmt: skip
    for name, flags in (
        ("transcoder", ["--site", "mlp_in", "--target-site", "mlp_out", "--layer", 1, "--base", "relu"]),
        ("crosscoder", ["--site", TWO, "--base", "topk"]),
    ):
        out = tmp_path / name
        cli.main([str(a) for a in [*common, "--variant", name, *flags, "--out", out]])
        assert json.loads(capsys.readouterr().out)["steps"] == 8
        model = sae.load(out)
        assert model.transcodes == (name == "transcoder")
        assert (model.dim, model.dim_out) == ((32, 32) if name == "transcoder" else (64, 64))


def test_live_and_stored_temporal_runs_see_neighbours(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, variant="temporal")
    for out, epochs in (("live", 1), ("stored", 2)):
        buffer_mb = 1 if epochs == 1 else 512
        result = train(dataclasses.replace(config, out=tmp_path / out, epochs=epochs, buffer_mb=buffer_mb))
        assert result.last["parts"]["contrast"] > 0.01


# --- what does not go together ---

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"variant": "transcoder"}, {}, "--variant transcoder: needs --target-site"),
    ({"variant": "topk"}, {"target_site": "mlp_out.1"}, "--variant topk: has no --target-site"),
    ({"variant": "transcoder"}, {"target_site": ONE}, f"--target-site {ONE}: expected one place, another than --site"),
    ({"variant": "transcoder"}, {"target_site": TWO}, f"--target-site {TWO}: expected one place, another than --site"),
    ({"variant": "topk"}, {"site": TWO}, f"--site {TWO}: names 2 places; --variant topk reads one"),
    (
        {"variant": "crosscoder"},
        {},
        f"--site {ONE}: names 1 places; --variant crosscoder reads two or more",
    ),
    ({"variant": "crosscoder"}, {"site": f"{ONE},{ONE}"}, f"--site {ONE},{ONE}: names (1|one) place"),
    ({"variant": "crosscoder"}, {"site": f"{ONE},,{ONE}"}, "--site .*: expected names with one comma"),
    (
        {"variant": "transcoder", "normalise": "layer_norm"},
        {"target_site": "mlp_out.1"},
        "--normalise layer_norm: .* not for --variant transcoder",
    ),
    (
        {"variant": "crosscoder", "normalise": "layer_norm"},
        {"site": TWO},
        "--normalise layer_norm: .* --variant cross",
    ),
    ({"variant": "matching_pursuit", "normalise": "whiten"}, {}, "atoms must keep equal norms; expected --normalise"),
    (
        {"variant": "crosscoder", "base": "matching_pursuit"},
        {"site": TWO},
        "--variant crosscoder: atoms must keep",
    ),
    (
        {"variant": "topk", "l0_target": 8.0},
        {},
        "--l0-target 8.0: applies to --variant relu, p_anneal, gated, jumprelu, not to topk",
    ),
    (
        {"variant": "topk", "recipe": "target", "l0_target": 8.0},
        {},
        "--l0-target 8.0: applies to .*; --recipe target: applies to --variant jumprelu, not to topk",
    ),
    ({"variant": "relu", "auxk": 5, "revival": "none"}, {}, "--auxk 5: expected with --revival auxk, and here it is"),
    ({"variant": "topk", "k_anneal": 0.5}, {}, "--k-anneal 0.5: .* --k-start, which is missing"),
    ({"variant": "batchtopk", "sparsity": 0.5}, {}, "--sparsity 0.5: applies to .* not to batchtopk"),
    ({"variant": "relu", "sparsity": 0.5, "l0_target": 8.0}, {}, "--sparsity 0.5: a fixed weight, and --l0-target"),
    ({"variant": "relu", "k_start": 8}, {}, "--k-start 8: applies to --variant topk, .* not to relu"),
    (
        {"variant": "jumprelu", "recipe": "target", "k_start": 8},
        {},
        "--k-start 8: applies to .* not to jumprelu",
    ),
    (
        {"variant": "matching_pursuit", "revival": "auxk"},
        {},
        "--revival auxk: --variant matching_pursuit has no pre",
    ),
]


def test_a_buffer_is_refused_where_nothing_is_buffered(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--buffer-mb 1: --epochs 2 keeps all activations in memory; expected with"):
        make_plan(dataclasses.replace(config, epochs=2))
    assert text_of(make_plan(dataclasses.replace(config, epochs=2, store=tmp_path / "store"))).config.buffer_mb == 1


@pytest.mark.parametrize(("settings", "place", "says"), REFUSED, ids=[says[:50] for _, _, says in REFUSED])
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], place: dict[str, Any], says: str, config: TrainConfig
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan(changed(config, harvest=place, **settings))
    assert not config.out.exists()


def test_pairs_want_an_even_batch(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="--batch 127: --variant temporal reads pairs; expected an even number"):
        make_plan(changed(config, optim={"batch": 127}, variant="temporal"))
    assert make_plan(changed(config, optim={"batch": 127})).data.batch == 127


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "jumprelu", "recipe": "target", "l0_target": 8.0},
        {"variant": "gated", "l0_target": 8.0, "revival": "resample"},
        {"variant": "matching_pursuit", "normalise": "layer_norm", "revival": "none"},
        {"variant": "topk", "normalise": "whiten", "k_start": 8, "revival": "pre_activation"},
    ],
)
def test_settings_that_go_together_are_planned(settings: dict[str, Any], config: TrainConfig) -> None:
    plan = make_plan(changed(config, **settings))
    assert (plan.recipe.model.dim, plan.recipe.model.dim_out) == (32, 32)
    assert estimate(plan)["steps"] == TOKENS // 128


def test_the_plan_of_two_sites_counts_both(config: TrainConfig) -> None:
    plan = make_plan(changed(config, harvest={"site": TWO}, variant="crosscoder"))
    assert (plan.recipe.model.dim, plan.recipe.model.dim_out) == (64, 64)
    assert [site.name for site in text_of(plan).sites] == TWO.split(",")
    assert estimate(plan)["dictionary"] == [96, 64]
    plan = make_plan(changed(config, harvest=sites_of("transcoder"), variant="transcoder"))
    assert [site.name for site in text_of(plan).sites] == ["mlp_in.1", "mlp_out.1"]
    assert estimate(plan)["target_site"] == "mlp_out.1"
    assert text_of(plan).store_identity["sites"] == {"mlp_in.1": 32, "mlp_out.1": 32}


@pytest.mark.parametrize("way", ["live", "store", "few documents"])
def test_tokens_that_fill_no_batch_are_said(
    way: str, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, tokens=300)
    if way != "live":
        config = dataclasses.replace(config, epochs=2, store=tmp_path / "store")
    if way == "few documents":
        texts = Path(config.harvest.dataset).read_text().splitlines(keepends=True)[:9]
        (tmp_path / "few.jsonl").write_text("".join(texts))
        config = dataclasses.replace(changed(config, harvest={"dataset": str(tmp_path / "few.jsonl")}), tokens=100_000)
    result = train(config)
    tokens = result.available if way == "few documents" else 300
    assert tokens is not None
    assert result.left_over == tokens % 128 > 0
    says = f"{tokens % 128:,} of {tokens:,} tokens do not fill a batch of 128 and are left out"
    assert says in " ".join(capsys.readouterr().err.split())
