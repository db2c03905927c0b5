"""The comparison report: a quick one from end to end, and what its numbers must obey."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finished_runs import finished_run
from sae.book.comparison.coders import Coder, changes
from sae.book.comparison.controls import pca_controls
from sae.book.comparison.grounds import Ground, pixel_ground
from sae.book.comparison.language import language_rows
from sae.book.comparison.measures import COLUMNS, measure
from sae.book.comparison.plan import QUICK
from sae.book.comparison.report import compare
from sae.book.measures.rate import RatePoint
from sae.cli.main import parse
from sae.config import ConfigError


@pytest.fixture(scope="session")
def report(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick report on the digits gives; its third tier reads a tiny language model."""
    run = finished_run(tiny_model, corpus)
    out = tmp_path_factory.mktemp("comparison") / "report"
    return compare(out, data="digits", seeds=2, quick=True, language_run=str(run.folder))


@pytest.fixture(scope="session")
def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The record's rows."""
    return json.loads(Path(report["record"]).read_text())["rows"]


@pytest.fixture(scope="session")
def digits() -> Ground:
    """The quick report's pixel tier."""
    return pixel_ground("digits", QUICK)


def of(rows: list[dict[str, Any]], tier: str, model: str) -> dict[str, Any]:
    """The means of one row."""
    (found,) = [row["means"] for row in rows if row["tier"] == tier and row["model"].startswith(model)]
    return found


def test_all_tiers_stand_in_one_table_with_every_column(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    tiers = {row["tier"] for row in rows}
    assert tiers == {"planted", "pixels", "encoder activations", "language-model activations"}
    assert report["left_out"] is None
    for row in rows:
        assert list(row["means"]) == list(COLUMNS)
        if row["settings"] is not None:  # trained
            needed = {"fvu", "bits", "l0", "dead", "active", "stability", "parameters", "seconds"}
            assert not [name for name in needed if row["means"][name] is None], row["model"]
            assert (row["means"]["mcc"] is not None) == (row["tier"] == "planted")
            labelled = row["tier"] in ("pixels", "encoder activations")
            for name in ("disentanglement", "modularity", "mig", "probe_5", "probe_full"):
                assert (row["means"][name] is not None) == labelled, (row["model"], name)
    assert of(rows, "pixels", "vae")["native_bits"] is not None
    assert of(rows, "language-model activations", "the run named")["fvu"] > 0


def test_intervals_hold_the_mean_of_their_seeds(rows: list[dict[str, Any]]) -> None:
    checked = 0
    for row in rows:
        for name, mean in row["means"].items():
            if isinstance(mean, dict):
                assert mean["low"] <= mean["value"] <= mean["high"]
                if name != "stability":
                    assert mean["value"] == pytest.approx(np.mean([seed[name] for seed in row["seeds"]]))
                    checked += 1
    assert checked > 50


def test_controls_behave(rows: list[dict[str, Any]]) -> None:
    truth, chance = of(rows, "pixels", "true factors"), of(rows, "pixels", "shuffled labels")
    for name in ("disentanglement", "completeness", "informativeness", "modularity", "mig", "probe_full"):
        assert truth[name] > 0.8, name
    assert chance["probe_full"] < 0.25  # of ten classes
    for latents in (1, 5, 16):
        assert 0.4 < chance[f"probe_{latents}"] < 0.6
    trained = of(rows, "pixels", "topk-w64-k8")["disentanglement"]["value"]
    assert chance["disentanglement"] < trained - 0.2
    # an untrained encoder finds no atoms, a sparse one learns some
    found, drawn = (of(rows, "planted", name)["mcc"]["value"] for name in ("topk", "random TopK"))
    assert found > drawn + 0.1


def test_a_row_of_pca_recomputed_by_hand(digits: Ground) -> None:
    train, held = digits.train.double().numpy(), digits.heldout.double().numpy()
    coder = pca_controls(digits, (8,))["PCA 8"]
    found = measure(coder, digits)
    mean = train.mean(0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:8]
    assert coder.atoms is not None
    axes *= np.sign((axes * coder.atoms.double().numpy()).sum(1))[:, None]  # which way an axis points is free
    z, z_held = (train - mean) @ axes.T, (held - mean) @ axes.T
    total = ((held - held.mean(0)) ** 2).sum()
    assert found.values["fvu"] == pytest.approx(((held - mean - z_held @ axes) ** 2).sum() / total, abs=1e-5)

    # a step at which held-out codes fall into bins that training knows: no escapes
    point = next(RatePoint(*p) for p in found.curve if p[4] == 0 and p[1] > 10)
    centre = np.sort(z, axis=0)[(len(z) - 1) // 2]
    symbols, held_symbols = (np.rint((codes - centre) / point.step) for codes in (z, z_held))
    bits, decoded = 0.0, np.zeros_like(z_held)
    for j in range(8):
        different = len(np.unique(symbols[:, j]))
        for symbol in np.unique(held_symbols[:, j]):
            known, here = symbols[:, j] == symbol, held_symbols[:, j] == symbol
            bits -= here.sum() * np.log2(known.sum() / (len(z) + different))
            # a bin's middle counts as one more training code
            middle = centre[j] + symbol * point.step
            decoded[here, j] = (z[known, j].sum() + middle) / (known.sum() + 1)
    assert point.fvu == pytest.approx(((held - mean - decoded @ axes) ** 2).sum() / total, rel=1e-4)
    assert point.bits == pytest.approx(bits / len(z_held), rel=1e-4)


def test_the_page_is_whole_and_needs_nothing_from_outside(report: dict[str, Any]) -> None:
    text = Path(report["page"]).read_text()
    for title in ("One table", "FVU against bits", "FVU against L0", "Disentanglement", "Probes on few latents",
                  "Atoms at equal FVU", "Firing over training"):  # fmt: skip
        assert f">{title}</h2>" in text
    assert text.count("<figure>") >= 10
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)


def test_a_second_call_trains_and_measures_nothing_anew(report: dict[str, Any], tiny_model: Path, corpus: Path) -> None:
    before = json.loads(Path(report["record"]).read_text())["rows"]
    said: list[str] = []
    out, run = Path(report["page"]).parent, finished_run(tiny_model, corpus)
    compare(out, data="digits", seeds=2, quick=True, language_run=str(run.folder), tell=said.append)
    assert not said
    again = json.loads(Path(report["record"]).read_text())["rows"]
    assert [row["means"] for row in again] == [row["means"] for row in before]


def test_without_a_harvest_the_language_tier_is_left_out_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_CACHE", str(tmp_path))
    reason = language_rows(None, tokens=1000, quick=True, scratch=tmp_path / "scratch")
    assert isinstance(reason, str)
    assert str(tmp_path) in reason


def test_one_seed_is_refused(tmp_path: Path) -> None:
    command = parse(["image", "compare", "--out", str(tmp_path / "x"), "--quick", "--seeds", "1"])
    with pytest.raises(ConfigError, match="seeds"):
        command.run()


def test_of_a_linear_decoder_the_change_by_a_latent_is_its_atom(digits: Ground) -> None:
    atoms = torch.randn(5, digits.train.shape[1], generator=torch.Generator().manual_seed(0))
    codes = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    codes[:, 4] = 1.0  # never varies
    found = changes(lambda z: z @ atoms + 1, codes)
    assert torch.allclose(found, atoms * codes.std(0)[:, None], atol=1e-5)


def test_atoms_without_a_latent_count_against_mcc(digits: Ground) -> None:
    truth = torch.eye(digits.train.shape[1])[:6]
    ground = digits._replace(atoms=truth, labels=None, known=None)
    for kept, expected in ((6, 1.0), (3, 0.5)):
        atoms = truth[:kept]
        coder = Coder(lambda x, a=atoms: x @ a.T, lambda z, a=atoms: z @ a, torch.ones(kept), atoms)
        assert measure(coder, ground).values["mcc"] == pytest.approx(expected)
