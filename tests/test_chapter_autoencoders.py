"""The chapter's experiments on plain, denoising, sparse and collapsing autoencoders, small: digits, few epochs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sae.base.files import read_json
from sae.base.progress import Interrupted
from sae.book.chapter import report
from sae.book.chapter.anomaly import failure_said
from sae.book.chapter.base import EXPERIMENTS, Experiment, Finding, Setting, experiment, trained
from sae.book.chapter.collapse import LATENTS, collapse_said
from sae.book.chapter.denoising import Gains, gains_said
from sae.book.chapter.measure import Spread, fvu, mean_of, over_seeds, pca_reconstruction, side
from sae.book.chapter.reduction import less_said, reduced
from sae.book.chapter.sparse import COPIES, copying_said, same_l0_said
from sae.cli import main as cli
from sae.config import ConfigError, VisionConfig
from sae.evaluation.baselines import PCA
from sae.evaluation.images import psnr
from sae.models.vision import recipe_of
from sae.training.trainer import Trainer


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(out=tmp_path_factory.mktemp("chapter"), data="digits", seeds=(0,), quick=True)


def found(setting: Setting, name: str) -> Finding:
    finding = EXPERIMENTS[name].run(setting)
    assert finding.text
    assert finding.tables
    json.dumps(report.plain(finding.numbers), allow_nan=False)
    return finding


def test_the_chapters_network_has_its_parameters() -> None:
    vision = VisionConfig(variant="ae", width=64, hidden=(256,))
    model = recipe_of(vision, (1, 28, 28), 4000).model
    assert sum(p.numel() for p in model.parameters()) == 435_536


def test_the_undercomplete_network_learns_and_counts_its_own_parameters(setting: Setting) -> None:
    numbers = found(setting, "undercomplete").numbers
    d = 64
    assert numbers["parameters"] == d * 256 + 256 + 256 * 64 + 64 + 64 * 256 + 256 + 256 * d + d
    assert mean_of(numbers["fvu"]) < 0.5
    first, last = numbers["loss"]
    assert last < first / 3


def test_a_linear_autoencoder_reaches_pca(setting: Setting) -> None:
    numbers = found(setting, "linear_is_pca").numbers
    assert 1 - 1e-6 <= numbers["training"]["ratio"] < 1.01
    assert mean_of(numbers["overlap"]) > 0.99
    assert mean_of(numbers["nearest_component"]) < 0.99


def test_two_latents_leave_less_error_than_two_components(setting: Setting) -> None:
    numbers = found(setting, "reduction").numbers
    two = numbers["fvu"][0]
    assert two["latents"] == 2
    assert two["less by"] > 0.1
    assert mean_of(numbers["trustworthiness"]["the autoencoder"]) > mean_of(numbers["trustworthiness"]["PCA"])


def test_sizes_that_reduce_nothing_are_left_out_and_signs_choose_the_word() -> None:
    assert reduced((2, 10, 32, 64), 64) == [2, 10, 32]
    assert less_said({2: 0.2, 10: 0.46, 32: -0.05}) == "less at 2 (by 20%) and 10 (by 46%); more at 32 (by 5%) latents"
    assert less_said({2: -0.1}) == "more at 2 (by 10%) latents"


def test_without_a_penalty_an_overcomplete_autoencoder_copies_noise_and_all(setting: Setting) -> None:
    measured = found(setting, "overcomplete").numbers["measured"]
    free, noise = measured["no penalty"], measured["noise"]
    assert mean_of(free["FVU"]) < COPIES
    assert mean_of(free["noise kept"]) > 0.8
    assert mean_of(noise["noise kept"]) < 0.4
    assert mean_of(measured["TopK"]["L0"]) == 16
    assert mean_of(free["FVU"]) < min(mean_of(measured[name]["FVU"]) for name in ("noise", "L1", "TopK"))


def test_an_autoencoder_copies_only_below_the_threshold_and_cures_are_named_by_what_they_do() -> None:
    free = {"FVU": 0.001, "noise kept": 0.9, "best latent": 0.7}
    noise = {"FVU": 0.1, "noise kept": 0.1, "best latent": 0.6}
    sparse = {"FVU": 0.2, "noise kept": 1.3, "best latent": 0.8}
    said = copying_said({"no penalty": [free], "noise": [noise], "L1": [sparse]})
    assert "the autoencoder copies: FVU 0.0010" in said
    assert "Less noise is passed on with noise (10%), no less with L1 (130%)" in said
    assert "better with L1 (80%), not significantly better with noise (60%)" in said
    assert "does not copy" in copying_said({"no penalty": [{**free, "FVU": 0.12}], "noise": [noise]})


def test_denoising_gains_at_its_level_and_beyond_it(setting: Setting) -> None:
    numbers = found(setting, "denoising").numbers
    for kind in ("gaussian", "masking", "salt_and_pepper"):
        curve = numbers[kind]
        trained_at = curve["levels"].index(curve["trained_at"])
        assert curve["gains"][trained_at] > 1
        assert curve["gains"][-1] > curve["gains"][trained_at]
    gaussian = numbers["gaussian"]["psnr"]
    assert mean_of(gaussian["trained at 0.3"][-1]) > mean_of(gaussian["plain autoencoder"][-1])
    only = numbers["corrupted_only"]
    assert mean_of(only["only corrupted pixels"]["other pixels"]) < mean_of(only["all pixels"]["other pixels"])


def test_losses_of_denoising_are_told() -> None:
    good, bad = Gains(0.3, 5.0, (0.1, 1.0), (0.6, 8.0), 2.0), Gains(0.2, 5.0, (0.05, -1.0), (0.4, 8.0), -0.5)
    assert gains_said({"gaussian": good}).endswith("There is a gain at every one of these levels, seen or not.")
    said = gains_said({"gaussian": good, "masking": bad})
    assert said.endswith(
        "There is no gain at the weakest unseen level for masking; over the plain autoencoder for masking."
    )
    assert "-1.0 at 0.05" in said


def test_more_active_latents_leave_less_error(setting: Setting) -> None:
    few, many = found(setting, "l1").numbers["curve"]
    for name in ("L1", "TopK"):
        assert mean_of(few[f"{name} L0"]) == pytest.approx(few["asked for"], rel=0.25)
        assert mean_of(many[f"{name} FVU"]) < mean_of(few[f"{name} FVU"])
    assert mean_of(few["TopK FVU"]) < mean_of(few["L1 FVU"])


def test_topk_and_the_penalty_are_compared_at_one_number_of_latents() -> None:
    # FVU 1 / L0, which is straight in the logarithms: at 8 latents exactly .125
    l1 = [(5.0, 1 / 5), (20.0, 1 / 20)]
    assert "0.100 and 0.125 at 8.0 latents. TopK leaves less at 1 of 1" in same_l0_said(l1, [(4.0, 0.1), (8.0, 0.1)])
    assert "TopK leaves less at 0 of 1" in same_l0_said(l1, [(8.0, 0.13)])
    assert same_l0_said(l1, [(4.0, 0.1)]).startswith("None")


def test_latents_held_to_a_rate_have_it(setting: Setting) -> None:
    numbers = found(setting, "rate").numbers
    assert mean_of(numbers["held to the rate"]["median rate"]) == pytest.approx(0.05, rel=0.2)
    assert mean_of(numbers["held to the rate"]["within 0.025 and 0.1"]) > 0.8
    assert mean_of(numbers["free"]["median rate"]) > 0.2


def test_selecting_codes_train_on_pixels_by_the_fused_steps(setting: Setting) -> None:
    numbers = found(setting, "selection").numbers
    assert set(numbers) == {"topk", "batchtopk", "jumprelu"}
    for row in numbers.values():
        assert row["route"] == "fused"
        assert mean_of(row["L0"]) == pytest.approx(16, rel=0.2)
        assert mean_of(row["FVU"]) < 0.3


def test_latents_collapse_under_a_strong_divergence_and_free_bits_bring_them_back(setting: Setting) -> None:
    usual, collapsed, _, free = found(setting, "collapse").numbers.values()
    assert mean_of(collapsed["KL (nats)"]) < mean_of(usual["KL (nats)"]) < mean_of(free["KL (nats)"])
    assert mean_of(collapsed["active latents"]) < LATENTS / 2
    assert mean_of(free["active latents"]) > mean_of(collapsed["active latents"])
    assert mean_of(free["over 0.1 nats"]) == LATENTS, "which is so by construction"
    assert mean_of(free["FVU"]) < mean_of(collapsed["FVU"])


def test_images_of_other_classes_are_less_likely(setting: Setting) -> None:
    numbers = found(setting, "anomaly").numbers
    assert mean_of(numbers["mean"]["auroc"]) > 0.93
    assert mean_of(numbers["failure"]["auroc"]) < mean_of(numbers["mean"]["auroc"])


def test_anomalies_fail_below_a_half_alone() -> None:
    def said(auroc: Spread) -> str:
        return failure_said({"auroc": auroc, "pca_auroc": 0.6}, {"auroc": 0.95, "pca_auroc": 0.9})

    assert "the score is the right way round" in said(0.749)
    assert "more than 16 principal components" in said(0.749)
    assert "the score fails" in said(0.3)
    assert "no more than 16 principal components" in said(0.3)
    assert "does not tell them apart" in said(over_seeds([0.4, 0.6]))


def test_a_cure_of_collapse_must_help() -> None:
    def row(active: float, left: float) -> dict[str, Any]:
        return {"active latents": active, "over 0.1 nats": 32.0, "FVU": left}

    said = collapse_said([row(20, 0.1), row(5, 0.5), row(5, 0.6), row(9, 0.4)])
    assert "5.0 active, FVU 0.600, which does not help" in said
    assert "9.0 active, FVU 0.400, which helps." in said
    assert "helps by one of the two" in collapse_said([row(20, 0.1), row(5, 0.5), row(5, 0.6), row(5, 0.4)])


def test_learned_features_beat_an_untrained_encoders(setting: Setting) -> None:
    accuracy = found(setting, "features").numbers["accuracy"]
    assert mean_of(accuracy["autoencoder"]["all"]) > mean_of(accuracy["random encoder"]["all"])
    assert mean_of(accuracy["autoencoder"]["10"]) > 0.3


def test_clusters_of_codes_agree_with_classes(setting: Setting) -> None:
    table = found(setting, "clusters").numbers["clusters"]
    assert mean_of(table["autoencoder"]["nmi"]) > mean_of(table["random encoder"]["nmi"])


def test_means_over_seeds_carry_students_interval() -> None:
    # t(.975, 2) = 4.3027, standard error 1/sqrt(3)
    spread = over_seeds([1.0, 2.0, 3.0])
    assert not isinstance(spread, float)
    assert spread == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert over_seeds([0.5]) == 0.5
    assert [side(over_seeds(values)) for values in ([1.0, 1.1], [-1.0, 2.0], [-1.0, -1.1], [0.0])] == [1, 0, -1, 0]


def test_fvu_and_psnr_are_their_definitions() -> None:
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    expected = noise.square().sum() / (x - x.mean(0)).square().sum()
    assert fvu(x, x + noise) == pytest.approx(expected.item(), rel=1e-4)
    assert psnr(x, x + 0.1) == pytest.approx(20, abs=1e-3)
    pca = PCA.fit([x])
    assert fvu(x, pca_reconstruction(pca, x, 6)) < 1e-9


class Said(NamedTuple):
    """What a command printed, and its status."""

    status: int
    out: str
    err: str


def said(capfd: pytest.CaptureFixture[str], *arguments: object) -> Said:
    status = 0
    try:
        cli.main(["image", "chapter", *map(str, arguments)])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    printed = capfd.readouterr()
    return Said(status, str(printed.out), str(printed.err))


@pytest.fixture
def two_experiments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Only two experiments, one of which fails; the list notes which were run."""
    ran: list[str] = []

    def good(setting: Setting) -> Finding:
        ran.append("good")
        return Finding(text="It holds.", numbers={"value": over_seeds([1.0, 2.0])}, tables=[[{"a": 1}]])

    def bad(setting: Setting) -> Finding:
        ran.append("bad")
        raise ConfigError("no such thing")

    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, "bad", Experiment(bad, (1,), "A claim that fails", ""))
    monkeypatch.setitem(EXPERIMENTS, "good", Experiment(good, (2,), "A claim that holds", ""))
    return ran


def test_a_failed_experiment_is_named_and_loses_no_other(
    tmp_path: Path, two_experiments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = said(capfd, "--out", tmp_path / "c", "--data", "digits", "--json")
    result = json.loads(outcome.out)
    assert outcome.status == 1
    assert result["failed"] == "bad"
    assert [row["state"] for row in result["experiments"]] == ["failed", "done"]
    assert "no such thing" in result["experiments"][0]["reason"]
    page = (tmp_path / "c" / "chapter.html").read_text()
    assert "A claim that holds" in page
    assert "It holds." in page
    findings: dict[str, Any] = read_json(tmp_path / "c" / "findings.json")
    assert set(findings) == {"good"}
    assert set(findings["good"]["numbers"]["value"]) == {"value", "low", "high"}


def test_finished_experiments_are_kept_and_failed_ones_tried_again(
    tmp_path: Path, two_experiments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        outcome = said(capfd, "--out", tmp_path / "c", "--data", "digits", "--json")
    assert two_experiments == ["bad", "good", "bad"]
    assert [row["state"] for row in json.loads(outcome.out)["experiments"]] == ["failed", "kept"]
    said(capfd, "--out", tmp_path / "c", "--data", "digits", "--only", "good", "--seeds", "2")
    assert two_experiments[3:] == ["good"], "other seeds are another experiment"


def test_a_stop_says_how_to_resume(
    tmp_path: Path, two_experiments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(setting: Setting) -> Finding:
        raise Interrupted(2, "continue a run that the user never started")

    monkeypatch.setitem(EXPERIMENTS, "bad", Experiment(stopped, (3,), "A claim that takes long", ""))
    outcome = said(capfd, "--out", tmp_path / "c", "--data", "digits")
    assert outcome.status == 130
    assert "the same command resumes" in outcome.err
    assert two_experiments == ["good"]
    assert (tmp_path / "c" / "chapter.html").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--only", "liner_is_pca"], ["--only", "liner_is_pca", "linear_is_pca"]),
        (["--seeds", "0"], ["--seeds 0", "at least 1"]),
    ],
)
def test_wrong_flags_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
) -> None:
    outcome = said(capfd, "--out", tmp_path / "c", *flags)
    assert outcome.status == 2
    assert all(part in outcome.err for part in parts)
    assert not (tmp_path / "c").exists()


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="linear_is_pca"):
        experiment("linear_is_pca", rows=(2,), title="again")(lambda setting: Finding("", {}))


def test_a_run_of_other_settings_is_not_taken_for_the_asked_one(tmp_path: Path) -> None:
    setting = Setting(out=tmp_path, data="digits", quick=True)
    vision = VisionConfig(variant="linear", width=2)
    first = trained(setting, "small", vision, epochs=1, limit=200)
    weights = (first.folder / "sae.safetensors").stat().st_mtime_ns
    assert trained(setting, "small", vision, epochs=1, limit=200).folder == first.folder
    assert (first.folder / "sae.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ConfigError, match="epochs 1, now 2"):
        trained(setting, "small", vision, epochs=2, limit=200)


def test_a_stopped_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = VisionConfig(variant="linear", width=2)
    whole, halves = (Setting(out=tmp_path / name, data="digits", quick=True) for name in ("whole", "halves"))
    step = Trainer.step

    def then_stop(self: Trainer, *batch: Any) -> None:
        step(self, *batch)
        if self.taken == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", then_stop)
    with pytest.raises(Interrupted):
        trained(halves, "small", vision, epochs=2)
    monkeypatch.undo()
    told: list[str] = []
    second = trained(dataclasses.replace(halves, tell=told.append), "small", vision, epochs=2)
    assert told == ["resuming small-digits-0"]
    first = trained(whole, "small", vision, epochs=2)
    assert second.model.dictionary.W.equal(first.model.dictionary.W)
