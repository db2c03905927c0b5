"""The race at toy size with our own tool, from text to table, and its evaluator against plain formulas."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from safetensors.torch import load_file

import forked
import sae
from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import assemble
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import TopK
from sae.training.tensors import TensorData
from scripts.race import __main__ as race_command
from scripts.race.evaluate import Parts, check, difference_over_seeds, fvu_over_seeds, load_form, margins
from scripts.race.member import Batches
from scripts.race.ours import OptimConfig, SAEConfig, TensorTrainConfig, rows_of
from scripts.race.settings import ENTRIES, Course, Member, Race
from scripts.race.table import Lane, draw, report

OURS = ["Sparsight topk", "Sparsight batchtopk"]


@pytest.fixture(scope="module")
def race(tiny_model: Path, corpus: Path) -> Race:
    return Race(
        model=str(tiny_model), dataset=str(corpus), layer=1, context=64, width=64, k=4, batch=256, tokens=8192,
        passes=2, validation=1024, test=2048, downstream=512, seeds=2, multiples=(7.0, 14.0), extensions=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(race: Race, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    race_command.prepare(race, folder)
    return folder


@pytest.fixture(scope="module")
def lanes(race: Race, folder: Path) -> list[Lane]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(race_command.subprocess, "run", run_forked)
        return race_command.run(race, folder, OURS, Path(sys.executable))


def run_forked(words: list[str], *, stdout: TextIO, env: dict[str, str], **_: Any) -> Any:
    """`subprocess.run` for members of ours."""
    done = forked.run(words, env=env)
    stdout.write(done.stdout + done.stderr)
    return done


def test_other_tools_get_the_batches_that_ours_trains_on_in_the_same_order(race: Race, folder: Path) -> None:
    for seed in range(race.seeds):
        config = TensorTrainConfig(
            rows=rows_of(folder), sae=SAEConfig(width=64, k=4), optim=OptimConfig(batch=race.batch), epochs=race.passes,
            out=folder / "unused", seed=seed, device="cpu",
        )  # fmt: skip
        stream = TensorData(config, torch.device("cpu")).batches(None, None).iterate(None)  # type: ignore[arg-type]
        ours, theirs = [batch.input.float() for batch in stream], list(Batches(folder, seed, race.batch))
        assert len(ours) == len(theirs) == 62
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_document_is_in_two_parts(folder: Path) -> None:
    parts = load_file(folder / "parts.safetensors")
    train, validation, test = (set(parts[f"{name}.document"].tolist()) for name in ("train", "validation", "test"))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(parts["train.document"]) == len(load_file(folder / "train.safetensors")["activations"])


def test_the_rate_is_the_best_on_validation_rows_at_the_first_seed(lanes: list[Lane]) -> None:
    for lane in lanes:
        assert sorted(lane.grid) == [7.0, 14.0]
        assert lane.grid[next(iter(lane.grid))] == min(lane.grid.values()) == lane.seeds[0]["validation_fvu"]
        assert [seed["seed"] for seed in lane.seeds] == [0, 1]
        assert {seed["multiple"] for seed in lane.seeds} == {next(iter(lane.grid))}


@pytest.mark.parametrize(
    ("optimum", "tried"),
    [(7.0, {3.5, 7.0, 14.0}), (28.0, {3.5, 7.0, 14.0, 28.0, 56.0}), (1.0, {0.875, 1.75, 3.5, 7, 14})],
)
def test_a_grid_whose_best_rate_lies_at_its_edge_goes_on(optimum: float, tried: set[float]) -> None:
    grid = race_command.best_rate(Race(), lambda multiples: {m: abs(math.log(m / optimum)) for m in multiples})
    assert set(grid) == tried
    assert next(iter(grid)) == min(tried, key=lambda m: abs(math.log(m / optimum)))


def test_the_evaluators_numbers_are_those_of_plain_formulas(race: Race, folder: Path, lanes: list[Lane]) -> None:
    x = Parts.read(folder).test.double()
    for lane in lanes:
        for measured, out in zip(lane.seeds, lane.folders, strict=True):
            codes, x_hat = sae.load(out / "run")(x.float())
            fvu = (x - x_hat.double()).square().sum() / (x - x.mean(0)).square().sum()
            assert measured["fvu"]["value"] == pytest.approx(fvu.item(), rel=1e-5)
            dense = codes.to_dense()
            assert measured["l0"]["value"] == pytest.approx((dense != 0).double().sum(1).mean().item())
            assert measured["dead"]["value"] == pytest.approx((dense == 0).all(0).double().mean().item())
            assert measured["difference"] <= 1e-5
        mean = sum(seed["fvu"]["value"] for seed in lane.seeds) / len(lane.seeds)
        interval = fvu_over_seeds(lane.folders)
        assert interval.value == pytest.approx(mean)
        assert interval.low < interval.value < interval.high


def test_a_reconstruction_that_is_not_the_tools_own_is_refused(race: Race, folder: Path, lanes: list[Lane]) -> None:
    x = Parts.read(folder).test
    model = load_form(lanes[0].folders[0], race)
    reconstructed = model(x).reconstruction.detach()
    assert check(model, reconstructed, x, "it") == 0
    with pytest.raises(CorruptError, match="differs from the tool's own by"):
        check(model, reconstructed * 1.0001, x, "it")


def test_a_row_on_which_rounding_decides_the_latents_is_not_compared() -> None:
    def model(second: float) -> Autoencoder:
        """Two latents that read the first channel, the second one `second` times as strongly, and write others."""
        encoder = torch.tensor([[1.0, 0, 0], [second, 0, 0], [0, 1.0, 0]])
        weights = {"W_enc": encoder, "W_dec": torch.eye(3), "b_enc": torch.zeros(3), "b_dec": torch.zeros(3)}
        return assemble(TopK(1), **weights, centred=False, source="it")

    x = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    theirs = torch.tensor([[0.0, 1.0, 0], [0, 0, 1.0]])
    assert check(model(1 - 1e-7), theirs, x, "it") == 0
    assert margins(model(0.99), x).tolist() == pytest.approx([0.01, 1.0])
    with pytest.raises(CorruptError, match="differs from the tool's own by"):
        check(model(0.99), theirs, x, "it")


def test_a_race_goes_on_without_training_a_finished_member_again(
    race: Race, folder: Path, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_command.subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    assert race_command.run(race, folder, OURS, Path(sys.executable)) == lanes


def test_a_folder_with_another_race_is_refused(race: Race, folder: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        race_command.prepare(Race(), folder)


def test_a_member_that_fails_says_why(race: Race, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "race.json").write_text(json.dumps(race.to_json()))
    with pytest.raises(RuntimeError, match=r"train\.safetensors"):
        race_command.train(tmp_path, race, [Member(OURS[0], 0, 7.0)], Path(sys.executable))


def test_the_report_has_a_row_an_entry_and_losses(race: Race, folder: Path, lanes: list[Lane], tmp_path: Path) -> None:
    text, values = report(race, folder, lanes)
    assert json.loads(json.dumps(values)) == values
    first, second = values["rows"]
    assert [first["entry"], second["entry"]] == OURS
    assert f"| {OURS[1]} |" in text
    assert "PCA, 4 components" in text
    assert second["delta_ce"]["low"] <= second["delta_ce"]["value"] <= second["delta_ce"]["high"]
    draw(values, tmp_path / "race.svg")
    assert (tmp_path / "race.svg").read_text().rstrip().endswith("</svg>")


def test_entries_are_compared_on_the_same_documents_and_seeds(lanes: list[Lane]) -> None:
    topk, batchtopk = ([seed["fvu"]["value"] for seed in lane.seeds] for lane in lanes)
    interval = difference_over_seeds(lanes[1].folders, lanes[0].folders)
    assert interval.value == pytest.approx(sum(b / a for a, b in zip(topk, batchtopk, strict=True)) / 2 - 1)
    assert difference_over_seeds(lanes[0].folders, lanes[0].folders) == (0, 0, 0)


def test_shares_of_a_run_are_what_every_tool_is_told() -> None:
    course = Course(steps=400, batch=512)
    assert (course.warmup, course.decay, course.dead_after, course.threshold_window) == (20, 80, 20_480, 20)
    assert ENTRIES["SAELens topk"].rate(16384, 7.0) == pytest.approx(1.4e-3)


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    large = torch.ones(2 << 28)  # 2 GiB, far more than what is imported takes
    code = "from scripts.race.member import peak_mib; print(peak_mib())"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert 50 < int(done.stdout) < large.nbytes >> 20
