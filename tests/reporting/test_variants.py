"""Variants with several seeds: `sae sweep --seed 0,1,2` compares them, `sae compare` does it again from the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import sae
from sae.base.files import CorruptError, read_json
from sae.cli.main import main
from sae.config import ConfigError
from sae.evaluation.matching.assignment import cosine_similarity, one_to_one
from sae.evaluation.replicates import FILE, Kept, of_control, read_kept
from sae.models.saved import load, read_description
from sae.reporting.sweep import compare as compare_members

FLAGS = (
    "--width", 64, "--k", 8, "--tokens", 2048, "--batch", 256, "--context", 64, "--contexts", 8, "--variant",
    "topk,batchtopk", "--evaluate-tokens", 600, "--downstream-tokens", 128, "--controls", "none",
)  # fmt: skip
ALL = sae.EvalConfig(tokens=600, downstream_tokens=128, pca_tokens=512, controls="all", resamples=200)


def command(model: Path, corpus: Path, out: Path, seeds: str) -> list[str]:
    given = ("sweep", "--model", model, "--dataset", corpus, "--layer", 1, *FLAGS, "--seed", seeds, "--out", out)
    return [str(argument) for argument in given]


def kept(run: Path) -> Kept:
    found = read_kept(run, str(read_description(run)["sha256"]))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def swept(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "sweep"
    main(command(tiny_model, corpus, out, "0,1,2"))
    return out


@pytest.fixture(scope="module")
def record(swept: Path) -> dict[str, Any]:
    return read_json(swept / "variants.json")


@pytest.fixture(scope="module")
def controlled(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, evaluated with all controls."""
    out = tmp_path_factory.mktemp("controlled") / "sweep"
    shutil.copytree(swept, out)
    compare_members(out, ALL)
    return out


def test_a_sweep_with_seeds_compares_its_variants(swept: Path, record: dict[str, Any]) -> None:
    assert [row["variant"] for row in record["variants"]] == ["topk", "batchtopk"]
    assert [row["seeds"] for row in record["variants"]] == [[0, 1, 2]] * 2
    assert record["reference"] == "topk"
    for name in ("variants.md", "variants.html", "variants.svg", "variants.png"):
        assert (swept / name).stat().st_size > 0
    assert "| batchtopk |" in (swept / "variants.md").read_text()


def test_means_are_those_of_the_evaluations(swept: Path, record: dict[str, Any]) -> None:
    for row in record["variants"]:
        reports = [sae.Run(run).evaluation for run in row["runs"]]
        for name, values in (
            ("fvu", [report["fvu"]["value"] for report in reports]),
            ("l0", [report["l0"]["value"] for report in reports]),
            ("dead", [report["dead"]["value"] for report in reports]),
            ("delta_ce", [report["downstream"]["delta_ce"]["value"] for report in reports]),
            ("kl", [report["downstream"]["kl"]["value"] for report in reports]),
        ):
            assert row["values"][name] == pytest.approx(values, rel=1e-6), name
            assert row["numbers"][name]["value"] == pytest.approx(np.mean(values), rel=1e-6), name


def test_documents_are_as_uncertain_as_in_a_single_evaluation(swept: Path) -> None:
    runs = [swept / name for name in ("topk-seed0", "batchtopk-seed0")]
    result = sae.compare(runs)["record"]
    for run, row in zip(runs, result["variants"], strict=True):
        report = sae.Run(run).evaluation
        fvu = kept(run).numbers["fvu"]
        bounds = [report["fvu"]["low"], report["fvu"]["high"]]
        assert np.quantile(fvu.draws, [0.025, 0.975]) == pytest.approx(bounds, rel=1e-6)
        for name in ("fvu", "dead"):
            kept_number, compared = kept(run).numbers[name], row["numbers"][name]
            error = np.sqrt(kept_number.factor * np.var(kept_number.draws))
            half = float(stats.t.ppf(0.975, kept_number.groups - 1)) * error
            # above: the lower bound of a share is cut off at 0
            assert compared["high"] - compared["value"] == pytest.approx(half, rel=1e-9), name
    assert "one seed" in result["notes"][0]


def test_mcc_is_of_the_latents_that_fired(swept: Path, record: dict[str, Any]) -> None:
    runs = [Path(run) for run in record["variants"][0]["runs"][:2]]
    atoms = [load(run).dictionary.W.detach()[kept(run).fired > 0] for run in runs]
    mcc = one_to_one(cosine_similarity(*atoms)).strength.double().mean().item()
    assert record["variants"][0]["values"]["mcc"][0] == pytest.approx(mcc)


def test_controls_stand_beside_the_reference(controlled: Path) -> None:
    record = read_json(controlled / "variants.json")
    controls = {row["control"]: row for row in record["controls"]}
    assert {"the mean", "PCA, 8 components", "the 8 largest channels", "shuffled atoms", "random dictionary"} <= set(
        controls
    )
    assert controls["the mean"]["numbers"]["fvu"]["value"] == pytest.approx(1, abs=1e-9)
    reference = record["variants"][0]["numbers"]
    for name, row in controls.items():
        for number in ("fvu", "delta_ce"):
            less = row["numbers"][number]["value"] - reference[number]["value"]
            assert row["difference"][number]["value"] == pytest.approx(less), (name, number)


def test_every_seed_has_a_random_dictionary_and_its_variants_share_it(controlled: Path) -> None:
    runs = controlled.glob("*-seed*")
    fvus = {run.name: kept(run).numbers[of_control("random dictionary", "fvu")].value for run in runs}
    for seed in range(3):
        assert fvus[f"topk-seed{seed}"] == pytest.approx(fvus[f"batchtopk-seed{seed}"], rel=1e-12)
    assert fvus["topk-seed0"] != fvus["topk-seed1"]


def test_the_command_again_measures_what_is_missing(
    swept: Path, tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(swept, out)
    shutil.rmtree(out / "batchtopk-seed1")
    kept = (out / "topk-seed0" / "eval.json").stat().st_mtime_ns
    main([*command(tiny_model, corpus, out, "0,1,2"), "--json"])
    assert (out / "topk-seed0" / "eval.json").stat().st_mtime_ns == kept
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["variant"] for row in result["variants"]] == ["topk", "batchtopk"]
    mine, theirs = (read_json(folder / "variants.json")["variants"][1]["numbers"] for folder in (out, swept))
    assert mine["fvu"] == pytest.approx(theirs["fvu"])


def test_compare_takes_another_reference(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(swept), "--reference", "batchtopk", "--out", str(tmp_path / "out"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["record"]["variants"][1]["difference"] is None
    first, back = (read_json(folder / "variants.json")["variants"] for folder in (swept, tmp_path / "out"))
    assert back[0]["difference"]["fvu"]["value"] == pytest.approx(-first[1]["difference"]["fvu"]["value"])
    with pytest.raises(ConfigError, match="no such variant; these are there: topk, batchtopk"):
        sae.compare([swept], sae.CompareConfig(reference="relu"))


def test_other_tokens_are_refused(swept: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("topk-seed0", "batchtopk-seed0")]
    for run in runs:
        shutil.copytree(swept / run.name, run)
    sae.evaluate(
        runs[1], sae.EvalConfig(tokens=500, downstream_tokens=128, pca_tokens=0, controls="none", resamples=10)
    )
    with pytest.raises(ConfigError, match="batchtopk-seed0: its fvu is of other documents"):
        sae.compare(runs)


def test_sums_of_another_evaluation_are_refused(swept: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("topk-seed0", "batchtopk-seed0")]
    for run in runs:
        shutil.copytree(swept / run.name, run)
    shutil.copy(swept / "topk-seed1" / FILE, runs[0] / FILE)
    with pytest.raises(ConfigError, match="no evaluation with resamples that are of it"):
        sae.compare(runs)
    (runs[0] / FILE).write_bytes((swept / "topk-seed0" / FILE).read_bytes()[:-200])
    with pytest.raises(CorruptError, match="cannot be read"):
        sae.compare(runs)
    (runs[0] / FILE).unlink()
    with pytest.raises(ConfigError, match="evaluate it: sae eval"):
        sae.compare(runs)


def test_one_variant_is_refused(swept: Path) -> None:
    with pytest.raises(ConfigError, match="expected two variants or more"):
        sae.compare([swept / "topk-seed0", swept / "topk-seed1"])
    with pytest.raises(ConfigError, match="is given twice"):
        sae.compare([swept / "topk-seed0", swept / "topk-seed0"])
