"""A report shows the runs' own numbers beside their controls, on one page that needs no network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from finished_runs import collected_run
from sae.config import ConfigError
from sae.evaluation.matching.scores import Scores, write_scores
from sae.evaluation.semantic.results import CAVEATS, RECORD, SAE, Row
from sae.models.saved import publish_report, read_description
from sae.reporting.latents import spread
from sae.reporting.report import report
from sae.reporting.subjects import open_subjects

TITLES = (
    "Numbers and controls",
    "Delta CE by position and token",
    "Training",
    "Densities",
    "Geometry of the dictionary",
    "Latents",
    "Provenance",
)


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "first"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    sae.evaluate(folder, sae.EvalConfig(tokens=2_048, downstream_tokens=512, pca_tokens=2_048, resamples=50))
    return folder


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the report of one run."""
    out = tmp_path_factory.mktemp("report")
    report([run], out)
    return out


@pytest.fixture(scope="module")
def twice(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the report of a run and its copy."""
    folder = tmp_path_factory.mktemp("twice")
    shutil.copytree(run, folder / "second")
    report([run, folder / "second"], folder / "out")
    return folder / "out"


def page_of(out: Path) -> str:
    return (out / "report.html").read_text()


def test_the_page_shows_the_evaluation_the_curves_and_the_latents(run: Path, written: Path) -> None:
    page, numbers = page_of(written), sae.Run(run).evaluation
    assert all(f">{title}</h2>" in page for title in TITLES)
    assert f"{numbers['fvu']['value']:.4g}" in page
    assert "PCA, 8 components" in page
    assert "<mark" in page
    added = page.partition(f">{TITLES[1]}</h2>")[2].partition("</section>")[0]
    for row in numbers["added_by_class"]["word"]:
        assert f'<td class="words">{row["class"]}</td>' in added
        assert all(f"{control['value']:.4g}" in added for control in row["controls"].values())


def test_the_model_card_shows_the_controls_of_the_page(run: Path, written: Path) -> None:
    card = (written / "model_card.md").read_text()
    assert card.startswith("---")
    for row in sae.Run(run).evaluation["controls"]:
        assert f"| {row['control']} | {row['fvu']['value']:.4g}" in card


def test_every_figure_has_a_sentence_and_the_page_needs_no_network(written: Path) -> None:
    page = page_of(written)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == page.count("<img")
    assert all(len(caption.split()) > 12 and caption.endswith(".") for caption in captions)
    addresses = re.findall(r'(?:src|href)="([^"#]+)', page)
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)


def test_figures_are_also_files_of_equal_bytes_each_time(run: Path, written: Path, tmp_path: Path) -> None:
    report([run], tmp_path)
    names = {path.name for path in (written / "figures").iterdir()}
    assert {"fvu_over_l0.svg", "fvu_over_l0.png", "nearest_cosines.svg", "added_by_class.svg"} <= names
    changed = [n for n in names if (written / "figures" / n).read_bytes() != (tmp_path / "figures" / n).read_bytes()]
    assert not changed


def test_several_runs_are_shown_side_by_side(twice: Path) -> None:
    controls = page_of(twice).partition("</section>")[0]
    assert controls.count("PCA, 8 components</td>") == 1, "the same control stands once"
    assert all(f'<td class="words">{name}</td>' in controls for name in ("first", "second"))
    assert {"first_model_card.md", "second_model_card.md"} <= {p.name for p in twice.iterdir()}


def test_runs_on_the_same_documents_are_compared_in_pairs(twice: Path) -> None:
    """A copy is no better: its rank is open."""
    section = page_of(twice).partition(">Runs compared in pairs</h2>")[2].partition("</section>")[0]
    assert section.count("not told apart") == 3
    assert section.count(">1-2<") == 6


def test_runs_on_other_documents_are_not_compared(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "shorter")
    sae.evaluate(tmp_path / "shorter", sae.EvalConfig(tokens=512, downstream_tokens=0, pca_tokens=0, resamples=50))
    report([run, tmp_path / "shorter"], tmp_path / "out")
    assert ">Runs compared in pairs</h2>" not in page_of(tmp_path / "out")
    assert "with the same --tokens" in page_of(tmp_path / "out")


def test_what_was_not_measured_is_told_with_its_command(written: Path) -> None:
    section = page_of(written).partition(">Not in this report</h2>")[2]
    for command in ("sae match", "sae steer", "sae explain", "sae measure"):
        assert command in section


def test_stability_steering_names_and_meaning_are_shown_beside_their_controls(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    *named, densest = sae.Run(folder).features.scalars["count"].argsort()[-12:].tolist()
    few = sae.SteerMeasureConfig(latent=(densest,), doses=(1.0, 4.0), prompts=2, prompt_tokens=8, tokens=4)
    sae.measure_steering(folder, few)
    sae.explain(folder, sae.ExplainConfig(latents=tuple(named), score=("detection",), score_tokens=4_096))
    weights = str(read_description(folder)["sha256"])
    one = np.linspace(0, 1, 128, dtype=np.float32)
    info = {"weights": weights, "runs": [{"name": "seed1"}], "chance": 0.4321, "chance_mean": 0.2468, "by": "atoms"}
    write_scores(folder, Scores(one, np.zeros((1, 128), np.int32), one[None], one[None], one, info))
    rows = [
        Row("tpp.score", task, subject, 5, 0.31, 0.2, 0.4, difference, None, None, 40, CAVEATS["tpp"])
        for task in ("topic", "country")
        for subject, difference in ((SAE, None), ("random latents", -0.1))
    ]
    publish_report(folder, RECORD, {"rows": [row._asdict() for row in rows]})
    result = report([folder], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert {"Stability", "Steering", "Names", "Probing and causal measures"} <= set(result["sections"])
    assert "Not in this report" not in result["sections"]
    for shown in (
        "0.2468",
        "of random latents",
        "AUROC of another latent",
        "Do not rank autoencoders by TPP",
        "seed1",
        "other name",
    ):
        assert shown in page
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"stability.svg", f"steering_response_{densest}.svg", "names.svg", "semantic_tpp.png"} <= figures


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
