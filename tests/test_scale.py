"""The simulation of many ranks: its parts are their formulas, the fit finds known rates, the page has its numbers."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest

from sae.cli.main import parse, parse_sweep
from scripts.scale.estimates import estimate, settings, table
from scripts.scale.model import Job, Link, Machine, Rank, costs, fit_link, fit_rank, flops, simulate, state_bytes
from scripts.scale.settings import CASES
from scripts.scale.simulate import all_scaled, main, markdown

RANK = Rank(overhead=1e-3, rate=2e11, memory=1e10, spread=0.0)
LINK = Link(latency=1e-5, bandwidth=1e9)
JOB = Job(d=64, latents=1024, k=8, rows=512, data=4, latent=2)


def test_an_all_reduce_takes_the_shorter_of_ring_and_tree() -> None:
    large, small = 1e9, 4.0
    assert LINK.all_reduce(2, large) == pytest.approx(2 * (1e-5 + 0.5))
    assert LINK.all_reduce(1024, small) == pytest.approx(2 * 10 * 1e-5 + 2 * small / 1e9)
    assert LINK.all_reduce(1, large) == 0
    assert LINK.all_gather(4, large) == pytest.approx(3 * (1e-5 + 1.0))


def test_the_fit_finds_the_rates_that_made_the_times() -> None:
    shapes = [(256, 1024), (256, 4096), (1024, 1024), (1024, 4096)]
    times = [(n, f, RANK.compute(n, f, 64, 8)) for n, f in shapes]
    assert fit_rank(times, 64, 8, 0.0) == pytest.approx(RANK, rel=1e-6)
    sizes = [1e3, 1e5, 1e7]
    assert fit_link([(b, LINK.all_reduce(2, b)) for b in sizes], 2) == pytest.approx(LINK, rel=1e-6)


def test_without_jitter_a_step_is_the_sum_of_its_costs() -> None:
    machine = Machine(RANK, LINK, LINK, LINK, model_rate=1e12)
    job = JOB._replace(harvest=1e9)
    result = simulate(job, machine, steps=3, seed=0)
    assert result["step"] == pytest.approx(sum(costs(job, machine)))
    assert result["waiting"] == 0
    n, f = 512 / 4, 1024 / 2
    assert result["sae"] == pytest.approx(1e-3 + flops(n, f, 64, 8) / 2e11 + state_bytes(f, 64) / 1e10)
    assert costs(job, machine).gradients == pytest.approx(LINK.all_reduce(4, 8 * f * 64 + 5 * f))


def test_jitter_makes_more_ranks_wait_longer() -> None:
    machine = Machine(RANK._replace(spread=0.1), LINK, LINK, LINK)
    few, many = (
        simulate(JOB._replace(data=ranks, rows=128 * ranks), machine, steps=200, seed=1)["waiting"] for ranks in (2, 64)
    )
    assert 0 < few < many
    assert simulate(JOB, machine, steps=50, seed=1) == simulate(JOB, machine, steps=50, seed=1)
    assert simulate(JOB, machine, steps=50, seed=1) != simulate(JOB, machine, steps=50, seed=2)


def test_the_command_prints_what_two_ranks_took_beside_what_it_foretold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = [(256, 1024), (256, 4096), (1024, 1024), (1024, 4096)]
    pair = Machine(RANK, LINK, LINK, LINK)
    measured = {
        "ranks": 2, "d": 64, "k": 8, "machine": {"processor": "made up", "load": 0},
        "alone": [
            {"rows": n, "latents": f, "seconds": RANK.compute(n, f, 64, 8), "spread": 0.0} for n, f in shapes
        ],
        "link": [{"bytes": b, "seconds": LINK.all_reduce(2, b)} for b in (1e3, 1e5, 1e7)],
        "together": [
            {
                "rows": 512, "latents": 2048, "data": data, "latent": latent,
                "seconds": 2 * sum(costs(Job(64, 2048, 8, 512, data, latent), pair)),
            }
            for data, latent in ((2, 1), (1, 2))
        ],
    }  # fmt: skip
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    main(["--measured", str(tmp_path / "measured.json"), "--steps", "5", "--svg", str(tmp_path / "a.svg")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["error"] for row in result["two_ranks"]] == pytest.approx([-0.5, -0.5]), "twice as slow as foretold"
    assert len(result["simulated"]) == 16
    for row in result["simulated"]:
        assert math.isclose(row["ranks"], math.prod(map(int, row["mesh"].split("x"))))
        assert 0 < row["efficiency"] < 1
    first = (tmp_path / "a.svg").read_bytes()
    main(["--measured", str(tmp_path / "measured.json"), "--steps", "5", "--svg", str(tmp_path / "a.svg")])
    assert (tmp_path / "a.svg").read_bytes() == first


PAGE = (Path(__file__).parents[1] / "docs/scale.md").read_text()


def test_the_page_has_the_numbers_of_the_scripts() -> None:
    assert markdown(all_scaled(steps=200, seed=0)) in PAGE
    assert table() in PAGE
    for case in CASES:
        assert settings(case) in PAGE


def test_estimates_are_their_arithmetic() -> None:
    estimates = estimate(CASES[0])
    hours = 2 * 1e9 * 1e9 / (0.4 * 989e12 * 0.955) / 3600
    assert estimates["GPU hours of the harvest"][1] == f"{hours:.1f}" == "1.5"
    assert estimates["store, one site, float16"][1] == f"{2 * 2304 + 21:,} B x T = 4.6 TB"


def commands() -> list[str]:
    """Every `sae` command of the page, launchers and line breaks left out."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [re.sub(r".*torchrun .*-m sae ", "sae ", line) for line in blocks.splitlines()]
    lines = [line.replace('"${RESUME[@]}"', "--resume").replace('"$OUT"', "OUT") for line in lines]
    return [line for line in lines if line.startswith("sae ")]


@pytest.mark.parametrize("command", commands())
def test_the_page_s_commands_are_understood(command: str) -> None:
    arguments = shlex.split(command)[1:]
    assert (parse_sweep(arguments) if arguments[0] == "sweep" else parse(arguments)) is not None


def test_the_page_has_the_commands_that_it_promises() -> None:
    given = {command.split()[1] for command in commands()}
    assert given == {"harvest", "sweep", "train", "eval", "features", "browse"}
