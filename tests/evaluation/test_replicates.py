"""Resamples kept beside an evaluation give the interval of a pair, and know which documents they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluated import DRAWS, autoencoder, data, evaluate
from sae.base.files import CorruptError
from sae.evaluation.bootstrap import GroupSums
from sae.evaluation.reconstruction import fvu_of
from sae.evaluation.replicates import FILE, kept_of, read_kept, replicates_of, write_kept


def two_evaluations():
    x, document = data()
    narrow, wide = (autoencoder(12, torch.eye(12)[:keep], x.mean(0)) for keep in (5, 7))
    return evaluate(narrow, x, document), evaluate(wide, x, document)


def test_draws_of_two_runs_differ_as_the_pair_does_on_every_resample() -> None:
    narrow, wide = two_evaluations()
    one, other = (replicates_of(each.sums, None, **DRAWS)["fvu"] for each in (narrow, wide))
    both = GroupSums()
    both.see(torch.arange(30))
    both.sums = narrow.sums.sums | {"wide": wide.sums.sums["error"]}
    pair = both.interval(lambda s: fvu_of("error", s) - fvu_of("wide", s), **DRAWS)
    assert pair is not None
    difference = one.draws - other.draws
    assert np.quantile(difference, [0.025, 0.975]) == pytest.approx([pair.low, pair.high])
    assert one.value - other.value == pytest.approx(pair.value)
    assert one.documents == other.documents


def test_other_documents_or_another_seed_are_noticed() -> None:
    x, document = data()
    model = autoencoder(12, torch.eye(12)[:5], x.mean(0))
    whole, part = evaluate(model, x, document), evaluate(model, x[:-1], document[:-1])
    prints = {
        replicates_of(whole.sums, None, **DRAWS)["fvu"].documents,
        replicates_of(part.sums, None, **DRAWS)["fvu"].documents,
        replicates_of(whole.sums, None, resamples=100, seed=1)["fvu"].documents,
    }
    assert len(prints) == 3


def test_what_was_written_is_read_for_the_same_weights_alone(tmp_path: Path) -> None:
    kept = kept_of(two_evaluations()[0], None, k=2, settings={"tokens": 3}, **DRAWS)
    write_kept(tmp_path, "a" * 64, kept)
    again = read_kept(tmp_path, "a" * 64)
    assert again is not None
    assert again.numbers.keys() == kept.numbers.keys() == {"fvu", "l0", "cosine", "dead"}
    assert all(np.array_equal(again.numbers[name].draws, kept.numbers[name].draws) for name in kept.numbers)
    assert again.numbers["fvu"].value == kept.numbers["fvu"].value
    assert again.numbers["dead"].factor == again.numbers["dead"].groups - 1
    assert np.array_equal(again.fired, kept.fired)
    assert again.settings == {"tokens": 3}
    assert read_kept(tmp_path, "b" * 64) is None
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(CorruptError, match="sae eval writes it anew"):
        read_kept(tmp_path, "a" * 64)
