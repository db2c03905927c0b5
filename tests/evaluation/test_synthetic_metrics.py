"""Metrics of recovery against closed forms and brute force: matching, signs, uniqueness, F1, FVU, invariances."""

from __future__ import annotations

import itertools

import pytest
import torch

from sae.evaluation.synthetic.metrics import best_features, cosines, detection, match, recovery_metrics, uniqueness
from sae.evaluation.synthetic.sampling import Sample, SyntheticData
from sae.evaluation.synthetic.worlds import WORLDS, World
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import TopK
from sae_kernels import SparseCodes

DRAW = torch.Generator().manual_seed(0)
FEATURES = torch.nn.functional.normalize(torch.randn(7, 12, generator=DRAW), dim=1)


def oracle(data: SyntheticData, atoms: torch.Tensor | None = None, threshold: float = 1e-3) -> Autoencoder:
    """f = relu(W (x - b) - threshold), x̂ = W^T f + b, with the true bias and, unless others are given, directions."""
    atoms = data.features if atoms is None else atoms
    model = Autoencoder(data.world.dim, len(atoms), TopK(len(atoms)))
    model.W_enc.data.copy_(atoms)
    model.b_enc.data.fill_(-threshold)
    model.dictionary.W.data.copy_(atoms)
    model.dictionary.b.data.copy_(data.bias)
    return model


def near(recovery) -> dict:
    return {name: pytest.approx(value, rel=1e-6, abs=1e-9) for name, value in recovery._asdict().items()}


def test_mcc_of_a_permuted_sign_flipped_scaled_dictionary_is_one() -> None:
    order = torch.randperm(7, generator=DRAW)
    factors = torch.tensor([1.0, -1.0, 2.0, -0.5, 3.0, 1.0, 1.0])
    pairs = match(FEATURES[order] * factors[:, None], FEATURES)
    assert pairs.mcc == pytest.approx(1, abs=1e-6)
    assert pairs.positive == pytest.approx(5 / 7)
    assert pairs.features.tolist() == list(range(7))
    assert order[pairs.latents].tolist() == list(range(7))


@pytest.mark.parametrize(("latents", "features"), [(5, 5), (6, 4), (3, 6)])
def test_matching_is_the_best_of_all_one_to_one_pairings(latents: int, features: int) -> None:
    atoms = torch.randn(latents, 8, generator=DRAW)
    truth = torch.randn(features, 8, generator=DRAW)
    table = cosines(atoms, truth).abs()
    few = table if latents <= features else table.T
    best = max(
        sum(few[row, column].item() for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(few.shape[1]), few.shape[0])
    )
    pairs = match(atoms, truth)
    assert len(pairs.latents) == min(latents, features)
    assert pairs.mcc == pytest.approx(best / min(latents, features))
    assert len(set(pairs.latents.tolist())) == len(set(pairs.features.tolist())) == len(pairs.latents)


def test_matching_prefers_the_best_sum_to_the_best_pair() -> None:
    """Latent 0 lies nearest to feature 0, but latent 1 lies near to no other."""
    truth = torch.eye(3)[:2]
    atoms = torch.tensor([[0.8, 0.6, 0.0], [0.75, 0.0, 0.66]])
    pairs = match(atoms, truth)
    assert pairs.latents.tolist() == [1, 0]
    assert pairs.features.tolist() == [0, 1]


def test_a_zero_atom_matches_with_cosine_zero() -> None:
    pairs = match(torch.zeros(2, 3), torch.eye(3))
    assert pairs.mcc == 0
    assert pairs.positive == 0


def test_atoms_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(3, 3\)"):
        match(torch.ones(2, 4), torch.eye(3))


def test_uniqueness_counts_different_features_of_live_latents() -> None:
    truth = torch.eye(4)
    atoms = torch.stack([truth[0], -truth[0], truth[1] + 0.1 * truth[2], truth[3], truth[3]])
    assert best_features(atoms, truth).tolist() == [0, 0, 1, 3, 3]
    assert uniqueness(atoms, truth, torch.ones(5, dtype=torch.bool)) == 3 / 5
    assert uniqueness(atoms, truth, torch.tensor([True, False, True, True, False])) == 1
    assert uniqueness(atoms, truth, torch.zeros(5, dtype=torch.bool)) == 0


def test_detection_equals_counting_token_by_token() -> None:
    latent = torch.rand(200, 6, generator=DRAW) < 0.3
    feature = torch.rand(200, 6, generator=DRAW) < 0.4
    latent[:, 4], feature[:, 5] = False, False
    scores = detection((latent & feature).sum(0), latent.sum(0), feature.sum(0))
    for pair in range(4):
        tokens = list(zip(latent[:, pair].tolist(), feature[:, pair].tolist(), strict=True))
        hits = tokens.count((True, True))
        precision = hits / (hits + tokens.count((True, False)))
        recall = hits / (hits + tokens.count((False, True)))
        assert scores.precision[pair].item() == pytest.approx(precision)
        assert scores.recall[pair].item() == pytest.approx(recall)
        assert scores.f1[pair].item() == pytest.approx(2 * precision * recall / (precision + recall))
    assert [score[4].item() for score in scores] == [0, 0, 0], "a latent that never fires detects nothing"
    assert all(score[5].isnan() for score in scores), "a feature that never fires cannot be judged"


def test_the_true_dictionary_recovers_an_orthogonal_world() -> None:
    data = SyntheticData(WORLDS["easy16"], seed=0)
    recovery = recovery_metrics(oracle(data), data.features, data.heldout(3000))
    for name in ("mcc", "positive", "recovered", "uniqueness", "f1", "precision", "recall", "latent_f1"):
        assert getattr(recovery, name) == pytest.approx(1, abs=1e-6), name
    assert recovery.l0 == recovery.true_l0 == 2
    assert recovery.dead == recovery.silent == 0
    assert recovery.fvu < 1e-5


def test_order_of_the_latents_changes_nothing_where_rates_differ() -> None:
    data = SyntheticData(World(features=12, dim=16, l0=3.0, zipf=1.0, directions="spread"), seed=0)
    order = torch.randperm(12, generator=DRAW)
    recovery = recovery_metrics(oracle(data, data.features[order]), data.features, data.heldout(1500))
    assert [recovery.mcc, recovery.f1, recovery.latent_f1] == pytest.approx([1, 1, 1], abs=1e-6)
    assert [recovery.precision, recovery.recall, recovery.uniqueness] == pytest.approx([1, 1, 1], abs=1e-6)


def test_fvu_is_that_of_the_features_left_out() -> None:
    """An orthogonal world without one feature loses that feature's second moment and nothing else."""
    data = SyntheticData(World(features=8, dim=8, l0=2.0, directions="spread"), seed=0)
    samples = [data.sample(2000, 0, heldout=True), data.sample(500, 1, heldout=True)]
    x = torch.cat([sample.x for sample in samples]).double()
    lost = x @ data.features[3].double()
    recovery = recovery_metrics(oracle(data, data.features[[0, 1, 2, 4, 5, 6, 7]], 0.0), data.features, samples)
    assert recovery.fvu == pytest.approx((lost.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(), rel=1e-5)
    assert recovery.recovered == 7 / 8, "of all features, also those without a latent"
    assert recovery.mcc == pytest.approx(1), "over the seven pairs"


def test_a_merged_parent_loses_recall_and_keeps_precision() -> None:
    """The child's latent takes the parent's direction along; the parent's own fires only when it is alone."""
    truth = torch.eye(4)[:2]
    both, alone = [1.0, 1.0], [1.0, 0.0]
    codes = torch.tensor([both] * 30 + [alone] * 10)
    sample = Sample(codes @ truth, _sparse(codes))
    model = Autoencoder(4, 2, TopK(1))
    atoms = torch.stack([truth[0], (truth[0] + truth[1]) / 2**0.5])
    model.W_enc.data.copy_(atoms)
    model.dictionary.W.data.copy_(atoms)
    recovery = recovery_metrics(model, truth, [sample])
    assert recovery.precision == 1
    assert recovery.recall == pytest.approx((10 / 40 + 1) / 2)
    assert recovery.f1 == pytest.approx((2 * 10 / 50 + 1) / 2)
    assert recovery.fvu == pytest.approx(0, abs=1e-10), "reconstruction does not notice"
    assert recovery.mcc == pytest.approx((1 + 0.5**0.5) / 2)
    assert recovery.l0 == 1
    assert recovery.true_l0 == pytest.approx(70 / 40)


def test_duplicates_and_dead_latents_show() -> None:
    data = SyntheticData(WORLDS["easy16"], seed=0)
    atoms = torch.cat([data.features, data.features[:4], -data.features[:4]])
    model = oracle(data, atoms)
    model.b_enc.data[20:] = -100.0
    recovery = recovery_metrics(model, data.features, data.heldout(3000))
    assert recovery.dead == 4 / 24
    assert recovery.uniqueness == 16 / 20
    assert recovery.latent_f1 == pytest.approx(20 / 24), "a dead latent has F1 zero there"
    assert recovery.mcc == pytest.approx(1)


def test_order_and_split_of_the_samples_change_nothing() -> None:
    data = SyntheticData(WORLDS["noisy"], seed=0)
    model = oracle(data, threshold=0.5)
    whole = data.sample(3000, 0)
    dense = whole.codes.to_dense()
    order = torch.randperm(3000, generator=DRAW)
    shuffled = [Sample(whole.x[part], _sparse(dense[part])) for part in order.split(701)]
    one, other = (recovery_metrics(model, data.features, samples) for samples in ([whole], shuffled))
    assert one._asdict() == near(other)


@pytest.mark.parametrize("factor", [0.01, 50.0])
def test_scaling_the_data_with_the_model_changes_nothing(factor: float) -> None:
    data = SyntheticData(WORLDS["noisy"], seed=0)
    model, scaled = oracle(data, threshold=0.5), oracle(data, threshold=0.5 * factor)
    scaled.dictionary.b.data.mul_(factor)
    sample = data.sample(2000, 0)
    one = recovery_metrics(model, data.features, [sample])
    other = recovery_metrics(scaled, data.features, [Sample(sample.x * factor, sample.codes)])
    assert other.fvu == pytest.approx(one.fvu, rel=1e-5)
    assert one._replace(fvu=0.0)._asdict() == near(other._replace(fvu=0.0))


def test_no_samples_are_refused() -> None:
    data = SyntheticData(WORLDS["easy16"], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        recovery_metrics(oracle(data), data.features, [])


def _sparse(dense: torch.Tensor) -> SparseCodes:
    rows, columns = dense.nonzero(as_tuple=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(dense)).cumsum(0)])
    return SparseCodes(dense[rows, columns], columns, dense.shape[1], starts)
