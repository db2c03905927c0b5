"""Choosing L0: the statistics against brute force, the verdicts on planted levels, and on a world whose L0 is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finished_runs import finished_run
from sae.base.files import publish_json, read_json
from sae.cli.l0 import choose_and_draw
from sae.cli.l0_worlds import measure_choices, trial
from sae.cli.main import parse_choose_l0
from sae.cli.recovery import Course
from sae.config import ConfigError, L0Config
from sae.evaluation.l0 import statistics
from sae.evaluation.l0.choice import Choice, Level, choose
from sae.evaluation.l0.run import choose_l0
from sae.evaluation.l0.statistics import agreement, decoder_cosine
from sae.evaluation.synthetic.metrics import match
from sae.pictures.l0 import draw_choice


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(noise: Sequence[float], *, seeds: int = 2, shared: float = 0.0) -> list[Level]:
    """Levels whose dictionaries are 40 orthonormal features with noise; `shared` is the part of it that all share."""
    truth, common = torch.linalg.qr(drawn(64, 64))[0][:40], drawn(64, seed=99)
    made = []
    for place, size in enumerate(noise):
        atoms = [
            truth + size * (drawn(40, 64, seed=10 * place + s) / 8 + shared * common / 8) for s in range(1, seeds + 1)
        ]
        made.append(Level(2.0 ** (place + 1), tuple(atoms)))
    return made


def chosen(noise: Sequence[float], **settings: float) -> Choice:
    return choose(levels(noise, **settings), resamples=200)  # pyright: ignore[reportArgumentType]


def test_decoder_cosine_is_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_BLOCK", 64)
    atoms = drawn(30, 12)
    pairs = [
        torch.nn.functional.cosine_similarity(atoms[i], atoms[j], dim=0).abs().item()
        for i in range(30)
        for j in range(i)
    ]
    draws = decoder_cosine(atoms, resamples=400, seed=0)
    assert draws.value == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert draws.resampled.mean().item() == pytest.approx(draws.value, rel=0.03)
    assert decoder_cosine(torch.eye(5), resamples=10, seed=0).value == 0
    with pytest.raises(ValueError, match="two atoms or more, got 1"):
        decoder_cosine(atoms[:1], resamples=10, seed=0)


def test_groups_of_atoms_change_the_resamples_and_not_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = drawn(40, 12)
    whole = decoder_cosine(atoms, resamples=400, seed=0)
    monkeypatch.setattr(statistics, "MAX_GROUPS", 16)
    grouped = decoder_cosine(atoms, resamples=400, seed=0)
    assert grouped.value == pytest.approx(whole.value)
    assert grouped.resampled.mean().item() == pytest.approx(whole.value, rel=0.05)


def test_agreement_is_the_mcc_of_two_seeds() -> None:
    first, second = drawn(30, 12), drawn(25, 12, seed=1)
    draws = agreement(first, second, resamples=400, seed=0)
    assert draws.value == pytest.approx(match(first, second).mcc, rel=1e-5)
    assert draws.resampled.std().item() == pytest.approx(match(first, second).cosines.abs().std().item() / 5, rel=0.2)
    assert agreement(first, -2 * first[torch.randperm(30)], resamples=10, seed=0).value == pytest.approx(1)


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_level_where_seeds_agree_is_chosen_and_the_others_are_judged(seeds: int) -> None:
    choice = chosen([2, 1, 0.1, 1, 2], seeds=seeds)
    assert (choice.l0, choice.low, choice.high) == (8, 4, 16)
    assert choice.verdicts == ["too low", "too low", "fits", "too high", "too high"]
    assert choice.decided_by == "agreement"
    assert choice.advice.startswith("Seeds agree most at L0 8 (MCC 0.99")
    assert "lies between 4 and 16" in choice.advice
    json.dumps(choice.to_json(), allow_nan=False)


def test_levels_that_agree_alike_are_not_told_apart() -> None:
    choice = chosen([2, 0.3, 0.3, 2])
    assert choice.verdicts == ["too low", "fits", "fits", "too high"]
    assert (choice.low, choice.high) == (2, 16)
    assert "4 and 8 cannot be told apart" in choice.advice


@pytest.mark.parametrize(("noise", "words"), [([2, 1, 0.5, 0.1], "above 16"), ([0.1, 0.5, 1, 2], "below 2")])
def test_an_optimum_at_an_end_of_the_range_is_not_extrapolated(noise: list[float], words: str) -> None:
    choice = chosen(noise)
    assert choice.l0 is choice.low is choice.high is None
    assert set(choice.verdicts) == {"unknown"}
    assert "no right L0 can be given" in choice.advice
    assert words in choice.advice


def test_with_one_seed_a_level_cosines_decide_and_the_advice_says_so() -> None:
    choice = chosen([2, 1, 0.1, 1, 2], seeds=1, shared=1.0)
    assert choice.decided_by == "decoder_cosine"
    assert choice.l0 == 8
    assert "With a second seed" in choice.advice
    assert "agreement" not in choice.to_json()["levels"][0]


def test_cosine_decides_among_levels_that_the_seeds_leave_open() -> None:
    made = levels([1.0, 0.97, 1.05, 2.0], shared=0.0)
    # one level more orthogonal than all others, at which the seeds agree about as much
    apart = [Level(8.0, tuple(torch.linalg.qr(atoms.T)[0].T for atoms in made[1].dictionaries))]
    choice = choose([Level(2.0, made[0].dictionaries), *apart, made[3]._replace(l0=16.0)], resamples=200)
    if choice.measured["agreement"].inside:
        pytest.fail("the seeds decide: the levels do not try what they should")
    assert choice.decided_by == "decoder_cosine"
    assert choice.l0 == 8
    assert "not surely" in choice.advice


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (levels([1, 1]), r"2 levels of L0 \(2, 4\): expected three or more"),
        ([*levels([1, 1]), Level(4.0, (drawn(4, 64),))], "two levels have the same L0"),
        ([*levels([1, 1]), Level(8.0, (drawn(1, 64), drawn(4, 64)))], "at L0 8 a run has fewer than two live"),
    ],
)
def test_too_little_to_choose_from_is_refused(made: list[Level], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(made)


def test_half_and_twice_a_known_l0_are_noticed() -> None:
    tried = trial("correlated", draw=0, seeds=2, factors=(0.5, 1, 2), course=Course(50, 400, 1e-2, 256), resamples=200)
    assert tried.choice.verdicts == ["too low", "fits", "too high"]
    assert tried.choice.l0 == pytest.approx(tried.true, rel=0.05)
    assert tried.recovery[1] > max(tried.recovery[0], tried.recovery[2])


def test_the_bench_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ConfigError, match="did you mean 'easy16'"):
        measure_choices(worlds=["easy17"], seeds=2, draws=1)
    with pytest.raises(ConfigError, match="--seeds 1: expected 2 or more"):
        measure_choices(worlds=["easy16"], seeds=1, draws=1)


def test_runs_that_differ_in_k_alone_are_levels_and_their_curve_is_drawn(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    runs = [finished_run(tiny_model, corpus, k=k).folder for k in (16, 4, 8)]
    report = choose_and_draw(runs, L0Config(tokens=1_024, resamples=50, out=tmp_path / "out"))
    assert [level["l0"] for level in report["levels"]] == pytest.approx([4, 8, 16], rel=0.01)
    assert report["decided_by"] == "decoder_cosine"
    assert json.loads((tmp_path / "out/l0.json").read_text())["levels"] == report["levels"]
    assert (tmp_path / "out/l0.svg").read_text().startswith("<?xml")
    with pytest.raises(ConfigError, match="exists already"):
        choose_and_draw(runs, L0Config(out=tmp_path / "out"))


def test_levels_of_every_size_are_labelled_with_plain_numbers() -> None:
    one = {"value": 0.4, "low": 0.3, "high": 0.5}
    levels = [{"l0": l0, "verdict": "fits", "agreement": one} for l0 in (0.5, 12.34, 127.9, 131.0, 1024.0, 16_384.2)]
    axis = draw_choice({"levels": levels, "decided_by": "agreement"}).axes[0]
    # 131 would run into the label before it
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "12.3", "128", "", "1,024", "16,384"]


def test_runs_that_differ_in_more_than_l0_and_seed_are_refused(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    runs = [finished_run(tiny_model, corpus, k=k).folder for k in (4, 8)]
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    with pytest.raises(ConfigError, match=f"{copy}: has the settings and the seed of {runs[0]}"):
        choose_l0([*runs, copy])
    record = read_json(copy / "config.json")
    record["train"]["optim"]["lr"] = 0.5
    publish_json(copy / "config.json", record)
    with pytest.raises(ConfigError, match=r"optim.lr is 0.5, in .* expected runs that differ in L0 and seed alone"):
        choose_l0([*runs, copy])
    with pytest.raises(ConfigError, match="expected run folders, or the flags of sae sweep"):
        choose_l0([])


def test_the_flags_of_a_sweep_give_its_members_with_two_seeds() -> None:
    line = "choose-l0 --model m --dataset d --layer 3 --out r --k".split()
    command = parse_choose_l0([*line, "4,8,16"])
    assert command.sweep is not None
    assert [(member.sae.k, member.seed) for member in command.sweep.members] == [
        (4, 0), (4, 1), (8, 0), (8, 1), (16, 0), (16, 1)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"--k 4,8: expected three or more"):
        parse_choose_l0([*line, "4,8"])
    with pytest.raises(ConfigError, match=r"--variant topk,relu: expected one"):
        parse_choose_l0([*line, "4,8,16", "--variant", "topk,relu"])
