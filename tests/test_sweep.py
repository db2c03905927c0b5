"""`sae sweep`: one read feeds every member, the table is the members' own evaluation, a second call goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sae.base.files import CorruptError, sha256_of
from sae.cli.main import main, parse, parse_sweep
from sae.cli.python import python_of
from sae.config import CollectConfig, ConfigError
from sae.features.collect.collect import collect
from sae.runs.sweeps import SWEEP, sweep_of

VARIANTS = (
    "topk,batchtopk,relu:penalty=tanh,transcoder:site=mlp_in:target-site=mlp_out,"
    "crosscoder:layer=None:site=resid_post.1+resid_post.2"
)
NAMES = ["topk", "batchtopk", "relu-tanh", "transcoder", "crosscoder"]


def arguments(tiny_model: Path, corpus: Path, out: Path, variants: str = VARIANTS, *more: object) -> list[str]:
    given = (
        "sweep", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 64, "--k", 8, "--tokens", 6144,
        "--batch", 256, "--context", 64, "--contexts", 8, "--variant", variants, "--out", out,
        "--evaluate-tokens", 1000, "--downstream-tokens", 256, *more,
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
    end = table.index("")
    assert end == 2 + len(NAMES)
    names = [line.split(" | ")[0].removeprefix("| ") for line in table[end + 3 :]]
    assert names == [row["run"] for row in record["controls"]]
    assert {"the mean", "PCA, 8 components"} <= set(names)
    for row, line in zip(record["rows"], table[2:end], strict=True):
        report = json.loads((swept / row["run"] / "eval.json").read_text())
        assert row["fvu"] == report["fvu"]
        assert row["delta_ce"] == report["downstream"]["delta_ce"]
        assert line.startswith(f"| {row['run']} |")
        assert row["tokens_a_second"] > 0
    sites = {row["run"]: row["site"] for row in record["rows"]}
    assert sites["transcoder"] == "mlp_in.1 -> mlp_out.1"
    assert sites["crosscoder"] == "resid_post.1, resid_post.2"


def test_the_plot_names_every_line_and_is_written_twice(swept: Path) -> None:
    drawn = (swept / "comparison.svg").read_text()
    for name in (*NAMES, "PCA, resid_post.1", "FVU", "L0"):
        assert f"<!-- {name}" in drawn, name
    assert (swept / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_batchtopk_reports_both_forms(swept: Path) -> None:
    report = json.loads((swept / "batchtopk" / "eval.json").read_text())
    assert report["training_form"]["l0"]["value"] == pytest.approx(8, abs=0.2)
    assert report["l0"]["value"] == pytest.approx(8, rel=0.1)
    assert json.loads((swept / "topk" / "eval.json").read_text())["training_form"] is None


def test_the_same_command_again_trains_what_is_missing(
    swept: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "family"
    shutil.copytree(swept, out)
    before = (out / "topk" / "sae.safetensors").stat().st_mtime_ns
    shutil.rmtree(out / "batchtopk")
    main(arguments(tiny_model, corpus, out, "topk,batchtopk"))
    assert (out / "topk" / "sae.safetensors").stat().st_mtime_ns == before
    assert sha256_of(out / "batchtopk" / "sae.safetensors") == sha256_of(swept / "batchtopk" / "sae.safetensors")
    (out / "comparison.json").unlink()
    main(arguments(tiny_model, corpus, out, "topk,batchtopk"))
    assert (out / "comparison.json").is_file(), "where nothing is missing it compares"


def test_a_member_finished_with_other_settings_is_refused(
    swept: Path, tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(swept / "topk", tmp_path / "topk")
    with pytest.raises(SystemExit):
        main(arguments(tiny_model, corpus, tmp_path, "topk,batchtopk", "--lr", 0.01))
    assert "topk: was trained with optim.lr None, now 0.01" in capsys.readouterr().err
    assert not (tmp_path / "batchtopk").exists()


def test_every_combination_of_the_grid_is_a_member(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    given = arguments(tiny_model, corpus, tmp_path, "topk,jumprelu:recipe=target")
    given[given.index("--k") + 1] = "4,8"
    members = parse_sweep(given).members
    assert [m.out.name for m in members] == ["k4-topk", "k4-jumprelu-target", "k8-topk", "k8-jumprelu-target"]
    assert [m.sae.k for m in members] == [4, 4, 8, 8]
    assert members[1].sae.recipe == "target"
    seeds = parse_sweep(arguments(tiny_model, corpus, tmp_path, "topk", "--seed", "0,1")).members
    assert [(m.out.name, m.seed) for m in seeds] == [("topk-seed0", 0), ("topk-seed1", 1)]


def test_a_dry_run_shows_members_memory_disk_and_time_and_writes_nothing(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(arguments(tiny_model, corpus, tmp_path / "out", "topk,batchtopk", "--dry-run", "--json"))
    shown = json.loads(capsys.readouterr().out)
    assert [member["run"] for member in shown["members"]] == ["topk", "batchtopk"]
    assert shown["memory_bytes"]["weights_gradients_moments"] == 2 * 16 * (64 * 32 * 2 + 64 + 32)
    assert shown["disk_bytes"]["runs"] > 0
    assert shown["seconds"]["harvest"] >= 0
    assert (shown["reads"], shown["together"]) == (1, "all")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_choose_l0_is_that_of_its_sweep(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = arguments(tiny_model, corpus, tmp_path / "out", "topk", "--dry-run", "--json")
    given[given.index("--k") + 1] = "2,4,8"
    main(["choose-l0", *given[1:]])
    shown = json.loads(capsys.readouterr().out)
    assert [member["run"] for member in shown["members"]] == [
        f"k{k}-topk-seed{seed}" for seed in (0, 1) for k in (2, 4, 8)
    ]
    assert not (tmp_path / "out").exists()


def test_eval_takes_a_sweep_and_evaluates_all_members_together(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "family"
    shutil.copytree(swept, out)
    shutil.rmtree(out / "crosscoder")
    main(["eval", str(out), "--tokens", "600", "--downstream-tokens", "0", "--pca-tokens", "600", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in shown["table"]] == NAMES
    assert "not begun" in shown["table"][-1]["stopped by"], "an unfinished member is in the table too"
    assert json.loads((out / "topk" / "eval.json").read_text())["tokens"] == 600
    assert "| relu-tanh |" in (out / "comparison.md").read_text()
    code = python_of(parse(["eval", str(out), "--tokens", "600"]))
    assert "from sae.reporting.sweep import compare" in code
    assert str(out) in code


def test_browse_opens_the_members_that_have_features(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import sae.browser.serve

    out = tmp_path / "family"
    shutil.copytree(swept, out)
    with pytest.raises(SystemExit):
        main(["browse", str(out)])
    assert f"no member of this sweep has features; collect them: sae features {out}/topk" in capsys.readouterr().err
    for name in ("batchtopk", "transcoder"):
        collect(out / name, CollectConfig(tokens=1_024))
    served = []
    monkeypatch.setattr(sae.browser.serve, "serve", lambda runs, **more: served.extend(runs) or {"stopped": True})
    main(["browse", str(out)])
    assert served == [str(out / "batchtopk"), str(out / "transcoder")]


@pytest.mark.parametrize(
    "command", [["features"], ["explain"], ["steer", "--latent", "1", "--prompt", "a"], ["verify"]]
)
def test_commands_that_read_one_run_name_a_member(
    command: list[str], swept: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([command[0], str(swept), *command[1:]])
    said = capsys.readouterr().err
    assert f"{swept}: a sweep of 5 runs, and sae {command[0]} reads one; name a member, such as {swept}/topk" in said


def test_a_damaged_record_of_a_sweep_is_refused(tmp_path: Path) -> None:
    assert sweep_of(tmp_path) is None
    for text in (
        "[]",
        '{"format": 2, "members": [], "errors": {}}',
        '{"format": 1, "members": ["../a"], "errors": {}}',
    ):
        (tmp_path / SWEEP).write_text(text)
        with pytest.raises(CorruptError, match="not the record of a sweep"):
            sweep_of(tmp_path)


def test_refusals(tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="two members have one name"):
        parse_sweep(arguments(tiny_model, corpus, tmp_path, "topk,topk"))
    with pytest.raises(SystemExit):
        main(arguments(tiny_model, corpus, tmp_path, "topk,tpok"))
    assert "did you mean 'topk'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments(tiny_model, corpus, tmp_path, "topk,transcoder")])
    assert "--variant transcoder: needs --target-site" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments(tiny_model, corpus, tmp_path, "topk", "--resume")])
    assert "a sweep always resumes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
