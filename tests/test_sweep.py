"""`sae sweep`: one harvest feeds every member, the table is the members' own evaluation, a second call goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sae.cli.main import main, parse_sweep
from sae.config import ConfigError

VARIANTS = (
    "topk,batchtopk,relu:penalty=tanh,transcoder:site=mlp_in:target-site=mlp_out,"
    "crosscoder:layer=None:site=resid_post.1+resid_post.2"
)
NAMES = ["topk", "batchtopk", "relu-tanh", "transcoder", "crosscoder"]


def arguments(tiny_model: Path, corpus: Path, out: Path, variants: str = VARIANTS) -> list[str]:
    given = (
        "sweep", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 64, "--k", 8, "--tokens", 6144,
        "--batch", 256, "--context", 64, "--contexts", 8, "--variant", variants, "--out", out,
        "--evaluate-tokens", 1000, "--downstream-tokens", 256,
    )  # fmt: skip
    return [str(argument) for argument in given]


@pytest.fixture(scope="module")
def swept(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweeps") / "family"
    main(arguments(tiny_model, corpus, out))
    return out


def test_every_member_is_a_run_and_a_row(swept: Path) -> None:
    record = json.loads((swept / "comparison.json").read_text())
    assert [row["run"] for row in record["rows"]] == NAMES
    table = (swept / "comparison.md").read_text().splitlines()
    assert len(table) == 2 + len(NAMES)
    for row, line in zip(record["rows"], table[2:], strict=True):
        report = json.loads((swept / row["run"] / "eval.json").read_text())
        assert row["fvu"] == report["fvu"]
        assert row["delta_ce"] == report["downstream"]["delta_ce"]
        assert line.startswith(f"| {row['run']} |")
        assert row["tokens_a_second"] > 0
    sites = {row["run"]: row["site"] for row in record["rows"]}
    assert sites["transcoder"] == "mlp_in.1 -> mlp_out.1"
    assert sites["crosscoder"] == "resid_post.1, resid_post.2"


def test_one_harvest_holds_the_sites_of_all(swept: Path) -> None:
    identity = json.loads((swept / "store" / "identity.json").read_text())
    assert set(identity["sites"]) == {"resid_post.1", "resid_post.2", "mlp_in.1", "mlp_out.1"}


def test_batchtopk_reports_both_forms(swept: Path) -> None:
    report = json.loads((swept / "batchtopk" / "eval.json").read_text())
    assert report["training_form"]["l0"]["value"] == pytest.approx(8, abs=0.2)
    assert report["l0"]["value"] == pytest.approx(8, rel=0.1)
    assert json.loads((swept / "topk" / "eval.json").read_text())["training_form"] is None


def test_the_same_command_again_trains_what_is_missing(
    swept: Path, tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "family"
    shutil.copytree(swept, out)
    before = (out / "topk" / "sae.safetensors").read_bytes()
    shutil.rmtree(out / "batchtopk")
    main(arguments(tiny_model, corpus, out, "topk,batchtopk"))
    told = capsys.readouterr()
    assert "batchtopk (1 of 1)" in told.out + told.err
    assert (out / "topk" / "sae.safetensors").read_bytes() == before
    assert (out / "batchtopk" / "sae.safetensors").read_bytes() == (
        swept / "batchtopk" / "sae.safetensors"
    ).read_bytes()
    (out / "comparison.json").unlink()
    main(arguments(tiny_model, corpus, out, "topk,batchtopk"))
    assert (out / "comparison.json").is_file(), "where nothing is missing it compares"


def test_every_combination_of_the_grid_is_a_member(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    given = arguments(tiny_model, corpus, tmp_path, "topk,jumprelu:recipe=target")
    given[given.index("--k") + 1] = "4,8"
    members = parse_sweep(given).members
    assert [m.out.name for m in members] == ["k4-topk", "k4-jumprelu-target", "k8-topk", "k8-jumprelu-target"]
    assert [m.sae.k for m in members] == [4, 4, 8, 8]
    assert members[1].sae.recipe == "target"


def test_refusals(tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="two members have one name"):
        parse_sweep(arguments(tiny_model, corpus, tmp_path, "topk,topk"))
    with pytest.raises(SystemExit):
        main(arguments(tiny_model, corpus, tmp_path, "topk,tpok"))
    assert "did you mean 'topk'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments(tiny_model, corpus, tmp_path, "topk,transcoder")])
    assert "--variant transcoder: needs --target-site" in capsys.readouterr().err
    assert not (tmp_path / "topk").exists()
