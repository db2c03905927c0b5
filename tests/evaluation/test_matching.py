"""Matching on planted dictionaries and activations, where who belongs to whom is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae.base.files import CorruptError
from sae.evaluation.matching import assignment
from sae.evaluation.matching.activations import Activations, correlation, entries
from sae.evaluation.matching.assignment import Nearest, cosine_similarity, nearest, nearest_other, one_to_one
from sae.evaluation.matching.pairs import CURVE, PairSettings, Side, compare, random_dictionary
from sae.evaluation.matching.relations import relate
from sae.evaluation.matching.scores import FILE, Against, read_scores, stability_of, summary, write_scores
from sae_kernels import SparseCodes


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def permutation(count: int, seed: int = 0) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def side(atoms: Tensor, encoder: Tensor | None = None) -> Side:
    return Side(torch.arange(len(atoms)), atoms, encoder, None)


def test_a_permuted_sign_flipped_scaled_copy_matches_wholly() -> None:
    atoms, order = drawn(60, 24), permutation(60)
    factors = torch.linspace(-3, 3, 60)[:, None]
    pair = compare(side(atoms, atoms), side((factors * atoms)[order], atoms[order]), PairSettings(resamples=50))
    assert pair.atoms is not None
    assert pair.relations is not None
    assert pair.encoder is not None
    assert pair.positive is not None
    assert order[pair.atoms.pairs.columns].equal(torch.arange(60))
    likeness = pair.atoms.likeness
    assert likeness.mcc.value == pytest.approx(1)
    assert (likeness.over.value, likeness.same.value, likeness.curve) == (1, 1, [1.0] * len(CURVE))
    assert pair.encoder.value == pytest.approx(1)
    assert pair.positive.value == pytest.approx(0.5)
    assert pair.relations.counts() == {
        "matched": 60, "split": 0, "merged": 0, "duplicates_first": 0, "duplicates_second": 0, "gone": 0, "new": 0
    }  # fmt: skip
    assert pair.atoms.chance.mcc.value < 0.7


@pytest.mark.parametrize(("rows", "columns"), [(50, 70), (70, 50), (40, 40)])
@pytest.mark.parametrize("candidates", [2, 5, 16])
def test_among_candidates_the_optimum_lies_within_the_gap_that_is_told(
    rows: int, columns: int, candidates: int
) -> None:
    first, second = drawn(rows, 12), torch.cat([drawn(rows, 12) + 0.8 * drawn(rows, 12, seed=1), drawn(40, 12, seed=2)])
    alike = cosine_similarity(first, second[:columns])
    exact, found = one_to_one(alike), one_to_one(alike, exact=0, candidates=candidates)
    mcc = exact.strength.double().mean().item()
    assert exact.gap == 0
    assert len(found.rows.unique()) == len(found.columns.unique()) == min(rows, columns)
    assert found.strength.double().mean().item() <= mcc + 1e-6
    assert mcc <= found.strength.double().mean().item() + found.gap + 1e-6
    if candidates == 16:
        assert found.gap < 0.005


def test_the_exact_pairs_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "_BLOCK", 100)  # a few rows at a time
    first, second = drawn(37, 8), drawn(29, 8, seed=1)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
    rows, columns = linear_sum_assignment(cosines.abs().numpy(), maximize=True)
    pairs, near = one_to_one(cosine_similarity(first, second)), nearest(cosine_similarity(first, second))
    assert pairs.strength.sum().item() == pytest.approx(cosines.abs()[rows, columns].sum().item())
    assert near.rows.index.equal(cosines.abs().argmax(1))
    assert near.columns.index.equal(cosines.abs().argmax(0))
    torch.testing.assert_close(near.columns.similarity, cosines[near.columns.index, torch.arange(29)])


def test_the_nearest_other_atom_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    atoms[7] = -2 * atoms[3]
    monkeypatch.setattr(assignment, "_BLOCK", 37 * 10)
    whole = torch.nn.functional.normalize(atoms, dim=1)
    whole = (whole @ whole.T).fill_diagonal_(0)
    neighbours = nearest_other(atoms)
    torch.testing.assert_close(neighbours.strength, whole.abs().max(1).values)
    assert neighbours.index[7] == 3
    assert neighbours.similarity[7].item() == pytest.approx(-1.0)


def test_duplicates_splits_merges_gone_and_new_latents_are_told_apart() -> None:
    e = torch.eye(16)
    half = math.sqrt(0.5)
    first = torch.stack([e[0], half * (e[1] + e[2]), e[3], e[4], e[5], e[9]])
    second = torch.stack([-e[0], e[1], 2 * e[2], half * (e[3] - e[4]), e[5], 3 * e[5], e[7]])
    relations = relate(first, second)
    assert relations.matched == ((0, 0), (4, 4))
    assert [(whole.latent, whole.parts) for whole in relations.splits] == [(1, (1, 2))]
    assert [(whole.latent, whole.parts) for whole in relations.merges] == [(3, (2, 3))]
    assert relations.splits[0].explained == pytest.approx(1)
    assert relations.duplicates == ((), (5,))
    assert (relations.gone, relations.new) == ((5,), (6,))
    # seen from the other side, splits are merges and new latents are gone
    turned = relate(second, first)
    assert (turned.splits, turned.merges) == (relations.merges, relations.splits)
    assert (turned.gone, turned.new, turned.duplicates) == (relations.new, relations.gone, ((5,), ()))


def test_a_latent_that_one_atom_explains_is_not_split() -> None:
    e = torch.eye(8)
    close = 0.95 * e[0] + math.sqrt(1 - 0.95**2) * e[1]
    relations = relate(e[:1], torch.stack([close, 0.5 * e[0] + math.sqrt(0.75) * e[2]]))
    assert relations.splits == ()
    assert relations.matched == ((0, 0),)
    assert relations.new == (1,)


def test_random_dictionaries_in_many_dimensions_share_nothing() -> None:
    counts = relate(drawn(200, 256), drawn(200, 256, seed=1)).counts()
    assert counts["gone"] == counts["new"] == 200


def test_correlations_are_those_of_the_dense_codes() -> None:
    first, second = (torch.relu(drawn(300, width, seed=seed) - 1) for width, seed in ((20, 0), (30, 1)))
    first[:, 3] = 0
    second[:, 4] = 2.0  # never varies
    second[:, 5] = 3 * first[:, 7]
    parts = [Activations.of([entries(SparseCodes.dense(c)) for c in codes.split(70)]) for codes in (first, second)]
    with np.errstate(invalid="ignore"):
        dense = np.nan_to_num(np.corrcoef(first.numpy().T, second.numpy().T)[:20, 20:])
    alike = correlation(*parts)
    np.testing.assert_allclose(torch.cat([b for _, b in alike.blocks()]).numpy(), dense, atol=1e-6)
    np.testing.assert_allclose(torch.cat([b for _, b in alike.turned.blocks()]).numpy(), dense.T, atol=1e-6)
    assert nearest(alike).rows.index[7] == 5
    assert parts[0].fired.equal((first > 0).sum(0))
    assert parts[0].l0 == pytest.approx((first > 0).sum().item() / 300)


def test_permuted_activations_keep_what_each_latent_does_and_lose_what_they_share() -> None:
    codes = torch.relu(drawn(4000, 12) - 1)
    activations = Activations.of([entries(SparseCodes.dense(codes))])
    permuted = activations.permuted(0)
    assert permuted.fired.equal(activations.fired)
    assert nearest(correlation(activations, activations)).rows.strength.min() > 0.999
    assert nearest(correlation(activations, permuted)).rows.strength.max() < 0.1


def test_a_random_dictionary_has_the_second_moments_of_the_true_one() -> None:
    scales = torch.linspace(0.1, 2, 10)
    atoms = torch.nn.functional.normalize(drawn(4000, 10) * scales, dim=1)
    random = random_dictionary(atoms, 1)
    moments = [a.T @ a / len(a) for a in (atoms, random)]
    torch.testing.assert_close(moments[1], moments[0], atol=0.02, rtol=0)
    few = random_dictionary(drawn(5, 10), 0)
    assert torch.linalg.matrix_rank(torch.cat([few, drawn(5, 10)])) == 5, "no direction that the atoms do not span"


def against(similarity: Tensor, latents: Tensor, *, by_atoms: bool = True) -> Against:
    count = len(latents)
    near = Nearest(torch.arange(count), similarity)
    places, chance = torch.arange(100, 100 + count), torch.full((count,), 0.2)
    return Against("other", "runs/other", "w2", latents, places, near if by_atoms else None, near, chance)


def test_stability_is_the_mean_of_the_best_matches_and_unknown_for_latents_that_never_fired(tmp_path: Path) -> None:
    live = torch.tensor([0, 2, 3])
    others = [against(torch.tensor([0.9, -1.0, 0.5]), live), against(torch.tensor([-0.5, 1.0, 0.1]), live)]
    scores = stability_of(4, "w1", others, tokens=10)
    np.testing.assert_allclose(scores.stability, [0.7, np.nan, 1.0, 0.3], rtol=1e-6)
    assert scores.nearest.tolist() == [[100, -1, 101, 102]] * 2
    assert summary(scores)["compared"] == 3
    assert summary(scores)["chance"] == pytest.approx(0.2)
    assert read_scores(tmp_path, "w1") is None
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path, "w1")
    assert again is not None
    np.testing.assert_array_equal(again.stability, scores.stability)
    np.testing.assert_array_equal(again.correlation, scores.correlation)
    assert again.info["runs"] == scores.info["runs"]
    assert read_scores(tmp_path, "another training") is None


def test_where_atoms_cannot_be_compared_activations_are() -> None:
    scores = stability_of(3, "w", [against(torch.tensor([0.3, -0.6, 0.2]), torch.arange(3), by_atoms=False)], tokens=10)
    np.testing.assert_allclose(scores.stability, [0.3, 0.6, 0.2], rtol=1e-6)
    assert np.isnan(scores.cosine).all()
    assert scores.info["by"] == "activations"


@pytest.mark.parametrize("keep", [0, 20, 300])
def test_damaged_scores_are_refused(tmp_path: Path, keep: int) -> None:
    write_scores(tmp_path, stability_of(3, "w", [against(torch.tensor([0.3, 0.6, 0.2]), torch.arange(3))], tokens=10))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:keep])
    with pytest.raises(CorruptError, match="sae match writes it anew"):
        read_scores(tmp_path, "w")
