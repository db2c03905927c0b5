"""Variants compared from what their evaluations keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluated import DRAWS, autoencoder, data
from sae.config import ConfigError
from sae.evaluation import bootstrap
from sae.evaluation.baselines import PCA
from sae.evaluation.comparison import Variant, compare_variants
from sae.evaluation.control_table import control_rows
from sae.evaluation.controls import RandomDictionary, controls_of
from sae.evaluation.matching.sources import Subject
from sae.evaluation.reconstruction import Reconstruction
from sae.evaluation.replicates import kept_of


def variant(name: str, latents: int, seeds: tuple[int, ...] = (0, 1, 2), rows: int = 900) -> Variant:
    """Autoencoders with noisy atoms in place of trained ones."""
    x, document = (part[:rows] for part in data())
    reports, kept, subjects = [], [], []
    for seed in seeds:
        noise = torch.randn(latents, 12, generator=torch.Generator().manual_seed(seed))
        model = autoencoder(12, torch.eye(12)[:latents] + 0.05 * noise, x.mean(0))
        pca = PCA.fit([x.float()])
        controls = controls_of("all", model, pca, RandomDictionary(model, 1, 1), k=2)
        measured = Reconstruction(model, x.mean(0), pca, controls)
        measured.add(x, x, document)
        numbers = measured.metrics(**DRAWS) | {"controls": control_rows(measured, None, k=2, **DRAWS), "site": "here"}
        reports.append(bootstrap.plain(numbers))
        kept.append(kept_of(measured, None, k=2, settings={}, **DRAWS))
        atoms = model.dictionary.W.detach()
        subjects.append(Subject(name, Path(name), "language", f"{name}{seed}", atoms, None, 12))
    return Variant(name, [f"{name}-{seed}" for seed in seeds], seeds, reports, kept, subjects)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return compare_variants([variant("narrow", 5), variant("wide", 7)])


def test_numbers_are_means_over_seeds(record: dict[str, Any]) -> None:
    row = record["variants"][0]
    fvus = [report["fvu"]["value"] for report in variant("narrow", 5).reports]
    assert row["values"]["fvu"] == pytest.approx(fvus)
    assert row["numbers"]["fvu"]["value"] == pytest.approx(np.mean(fvus))
    assert row["numbers"]["fvu"]["low"] < min(fvus) < max(fvus) < row["numbers"]["fvu"]["high"]


def test_more_latents_explain_more_and_are_ranked_so(record: dict[str, Any]) -> None:
    narrow, wide = record["variants"]
    assert narrow["difference"] is None
    assert wide["difference"]["fvu"]["high"] < 0
    assert wide["difference"]["fvu"]["p_holm"] < 0.05
    assert (narrow["ranks"]["fvu"], wide["ranks"]["fvu"]) == ([2, 2], [1, 1])
    assert narrow["ranks"]["mcc"] == wide["ranks"]["mcc"] == [1, 2]


def test_controls_are_compared_with_the_reference(record: dict[str, Any]) -> None:
    controls = {row["control"]: row for row in record["controls"]}
    reference = record["variants"][0]["numbers"]["fvu"]["value"]
    assert controls["the mean"]["numbers"]["fvu"]["value"] == pytest.approx(1)
    assert controls["random dictionary"]["difference"]["fvu"]["value"] == pytest.approx(0)  # it is the autoencoder here
    for row in record["controls"]:
        assert row["difference"]["fvu"]["value"] == pytest.approx(row["numbers"]["fvu"]["value"] - reference)


def test_other_documents_and_unknown_references_are_refused() -> None:
    narrow = variant("narrow", 5)
    with pytest.raises(ConfigError, match="fvu is of other documents or resamples than that of narrow-0"):
        compare_variants([narrow, variant("wide", 7, rows=800)])
    with pytest.raises(ConfigError, match="no such variant; these are there: narrow, wide"):
        compare_variants([narrow, variant("wide", 7)], "topk")


def test_too_few_seeds_are_said() -> None:
    notes = compare_variants([variant("narrow", 5, (0,)), variant("wide", 7, (0, 1))])["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "narrow has one seed",
        "wide has two seeds",
        "variants have different seeds",
    ]
