"""Every variant finds the features of a known world; a small version of `sae bench recovery`.

Thresholds lie below what three seeds of the longer course gave (docs/variants.md); this course is shorter.
"""

from __future__ import annotations

import pytest

from sae.cli.recovery import Course, measure_recovery, recover
from sae.config import ConfigError

QUICK = Course(32, 500, 1e-2)
EASY = {
    "topk": 0.95,
    "batchtopk": 0.95,
    "matryoshka": 0.9,
    "jumprelu": 0.95,
    "gated": 0.95,
    "p_anneal": 0.95,
    "relu": 0.9,
    "temporal": 0.85,
    "matching_pursuit": 0.95,
    "transcoder": 0.95,
    "crosscoder": 0.95,
}


@pytest.mark.parametrize("variant", EASY)
def test_an_easy_world_is_recovered(variant: str) -> None:
    found = recover(variant, "easy16", seed=0, course=QUICK)
    assert found.mcc > EASY[variant]
    assert found.l0 == pytest.approx(found.true_l0, rel=0.3)


def test_matryoshka_keeps_parents_that_batchtopk_merges_into_their_children() -> None:
    course = Course(512, 1000, 5e-3)
    nested, flat = (recover(variant, "hierarchical", seed=0, course=course) for variant in ("matryoshka", "batchtopk"))
    assert nested.f1 > flat.f1 + 0.05
    assert nested.mcc > flat.mcc + 0.03


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_half_and_twice_the_true_l0_mix_correlated_features(variant: str) -> None:
    course = Course(50, 400, 1e-2, 256)
    half, right, twice = (
        recover(variant, "correlated", seed=0, l0_factor=factor, course=course) for factor in (0.5, 1.0, 2.0)
    )
    for wrong in (half, twice):
        assert wrong.mcc < right.mcc - 0.04
        assert wrong.f1 < right.f1 - 0.05
    assert twice.fvu < right.fvu < half.fvu, "what is reconstructed does not tell which one is right"


def test_an_unknown_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'easy16'"):
        measure_recovery(variants=["topk"], worlds=["easy17"], seeds=1)
