"""Sparse probing, SCR, TPP and absorption are SAEBench's on the same arrays; scripts/interop/saebench_measures.py has
its own functions write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sae.evaluation.semantic import absorption, removal
from sae.evaluation.semantic.bases import Basis, best
from sae.evaluation.semantic.intervals import balanced_accuracy
from sae.evaluation.semantic.probes import Probe
from sae.evaluation.semantic.sparse_probing import mean_difference

with np.load(Path(__file__).parent / "saebench.npz", allow_pickle=False) as _file:
    THEIRS = dict(_file)
ATOMS = THEIRS["atoms"]
SUBJECT = Basis("SAE", lambda inputs, targets: None, ATOMS)
ALL = np.ones(len(ATOMS), dtype=bool)


def cells(what: str, *, profession: tuple[int, ...] = (1, 0), gender: tuple[int, ...] = (1, 0)) -> np.ndarray:
    """Means over the tokens of texts of some cells, [n, ...]."""
    return np.concatenate([THEIRS[f"scr.{what}.{p}{g}"].mean(1) for p in profession for g in gender])


def truth(of: str) -> np.ndarray:
    """Whether the texts of all four cells are of the first class of an attribute."""
    count = len(THEIRS["scr.x.11"])
    return np.repeat([(p if of == "profession" else g) == 1 for p in (1, 0) for g in (1, 0)], count)


def probe(name: str) -> Probe:
    return Probe(THEIRS[f"scr.{name}.direction"].astype(np.float64), float(THEIRS[f"scr.{name}.offset"][0]))


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_sparse_probing_chooses_the_same_latents_with_the_same_accuracy_unless_they_are_standardised(k: int) -> None:
    z, y = THEIRS["probing.z"], THEIRS["probing.y"] == 1
    latents = best(np.abs(mean_difference(z[:40], y[:40])), k, SUBJECT, ALL, 0)
    assert sorted(latents.tolist()) == np.flatnonzero(THEIRS[f"probing.kept.{k}"]).tolist()
    latents = np.sort(latents)
    # their regression does not standardise, ours does, as values of latents and of channels have other units
    model = LogisticRegression(max_iter=1000).fit(z[:40][:, latents], y[:40])
    scores = model.decision_function(z[40:][:, latents])
    accuracy = balanced_accuracy(scores, y[40:], np.ones((1, 40)))[0]
    assert accuracy == pytest.approx(float(THEIRS[f"probing.accuracy.{k}"]))


@pytest.mark.parametrize("name", ["gender", "profession"])
def test_effects_for_scr_are_theirs(name: str) -> None:
    effects = removal.effects(cells("z"), truth(name), ATOMS, probe(name).direction, signed=False)
    assert effects == pytest.approx(THEIRS[f"scr.{name}.effects"], rel=1e-4, abs=1e-5)


def test_effects_for_tpp_are_theirs() -> None:
    z = np.concatenate([THEIRS["scr.z.11"].mean(1), THEIRS["scr.z.00"].mean(1)])
    of_class = np.arange(len(z)) < len(z) // 2
    effects = removal.effects(z, of_class, ATOMS, probe("gender").direction, signed=True)
    assert effects == pytest.approx(THEIRS["tpp.effects"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("k", [2, 5])
def test_what_is_ablated_and_what_scr_says_of_it_are_theirs(k: int) -> None:
    effects = removal.effects(cells("z"), truth("gender"), ATOMS, probe("gender").direction, signed=False)
    latents = best(effects, k, SUBJECT, ALL, 0)
    assert sorted(latents.tolist()) == np.flatnonzero(THEIRS[f"scr.kept.{k}"]).tolist()
    x, z = (cells(what, profession=(1,), gender=(1,)) for what in "xz")
    assert removal.ablated(x, z, ATOMS, latents) == pytest.approx(THEIRS[f"scr.ablated.{k}"], abs=1e-5)
    for way, kept, removed in ((1, "profession", "gender"), (2, "gender", "profession")):
        effects = removal.effects(cells("z"), truth(removed), ATOMS, probe(removed).direction, signed=False)
        left = removal.ablated(cells("x"), cells("z"), ATOMS, best(effects, k, SUBJECT, ALL, 0))
        accuracies = [
            balanced_accuracy(scores, truth(kept), np.ones((1, len(left))))
            for scores in (probe("both").scores(cells("x")), probe("both").scores(left), probe(kept).scores(cells("x")))
        ]
        score = removal.scr(*accuracies)[0]
        assert (0.0 if np.isnan(score) else score) == pytest.approx(float(THEIRS[f"scr.dir{way}.{k}"]), abs=1e-5)


def test_tpp_of_the_same_accuracies_is_theirs() -> None:
    clean, after = THEIRS["tpp.clean"][:, None], THEIRS["tpp.after"][:, :, None]
    assert removal.tpp(clean, after)[0] == pytest.approx(float(THEIRS["tpp.score"]))
    assert removal.tpp(clean, after, intended_only=True)[0] == pytest.approx(float(THEIRS["tpp.intended"]))


@pytest.mark.parametrize("number", [0, 1])
def test_absorption_of_the_same_words_is_theirs(number: int) -> None:
    of = absorption.absorbed(
        THEIRS["absorption.x"],
        THEIRS["absorption.z"],
        ATOMS,
        THEIRS["absorption.direction"],
        THEIRS[f"absorption.main.{number}"],
    )
    assert of.fraction == pytest.approx(THEIRS[f"absorption.fraction.{number}"], abs=1e-4)
    assert of.full.tolist() == THEIRS[f"absorption.full.{number}"].tolist()
    assert 0 < of.full.mean() < 1
