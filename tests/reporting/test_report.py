"""A report shows the runs' own numbers beside their controls, on one page that needs no network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import sae
from finished_runs import collected_run
from sae.config import ConfigError
from sae.reporting.latents import spread
from sae.reporting.report import report
from sae.reporting.subjects import open_subjects

TITLES = ("Numbers and controls", "Training", "Densities", "Geometry of the dictionary", "Latents", "Provenance")


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "first"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    sae.evaluate(folder, sae.EvalConfig(tokens=2_048, downstream_tokens=512, pca_tokens=2_048, resamples=50))
    return folder


def test_the_page_shows_the_evaluation_the_curves_and_the_latents(run: Path, tmp_path: Path) -> None:
    result = report([run], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert set(TITLES) <= set(result["sections"])
    assert all(f">{title}</h2>" in page for title in TITLES)
    assert f"{sae.Run(run).evaluation['fvu']['value']:.4g}" in page
    assert "PCA, 8 components" in page
    assert "<mark" in page
    assert (tmp_path / "out" / "model_card.md").read_text().startswith("---")


def test_the_page_needs_no_network(run: Path, tmp_path: Path) -> None:
    report([run], tmp_path)
    addresses = re.findall(r'(?:src|href)="([^"#]+)', (tmp_path / "report.html").read_text())
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)


def test_figures_are_also_files_of_equal_bytes_each_time(run: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        report([run], tmp_path / out)
    names = {path.name for path in (tmp_path / "a" / "figures").iterdir()}
    assert {"fvu_over_l0.svg", "fvu_over_l0.png", "nearest_cosines.svg"} <= names
    assert all((tmp_path / "a/figures" / n).read_bytes() == (tmp_path / "b/figures" / n).read_bytes() for n in names)


def test_several_runs_are_shown_side_by_side(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "second")
    report([run, tmp_path / "second"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "first: PCA" in page
    assert "second: PCA" in page
    assert {"first_model_card.md", "second_model_card.md"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_a_run_given_twice_and_a_file_in_the_way_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        open_subjects([run, run])
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*taken: a file"):
        report([run], tmp_path / "taken")


def test_latents_are_spread_over_the_ranks_of_their_density() -> None:
    density = torch.tensor([0.0, 0.5, 0.1, 0.3, 0.2, 0.0, 0.4]).numpy()
    assert spread(density, 3) == [1, 3, 2]
    assert spread(density, 50) == [1, 6, 3, 4, 2]
    assert spread(density * 0, 3) == []
