"""Every metric against a closed form: mean prediction, identity, scaling, batching, PCA, intervals, dead latents."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from evaluated import DRAWS, autoencoder, data, evaluate
from sae.config import VisionConfig
from sae.evaluation import bootstrap
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import GroupSums, ratio, resample_weights
from sae.evaluation.reconstruction import Reconstruction, fvu_of, fvu_sums
from sae.models.vision import recipe_of
from sae.modules.codes import TopK


def test_a_known_projection_has_the_fvu_of_what_it_leaves_out() -> None:
    x, document = data()
    keep = torch.eye(12)[:5]
    metrics = evaluate(autoencoder(12, keep, x.mean(0)), x, document).metrics(**DRAWS)
    centred = x.double() - x.double().mean(0)
    assert metrics["fvu"].value == pytest.approx((centred[:, 5:].pow(2).sum() / centred.pow(2).sum()).item(), rel=1e-6)


def test_a_constant_input_has_no_fvu() -> None:
    x = torch.full((50, 12), 3.3) * (1 + 1e-8 * torch.randn(50, 12, generator=torch.Generator().manual_seed(2)))
    metrics = evaluate(autoencoder(12, torch.eye(12)[:3]), x, torch.arange(50)).metrics(**DRAWS)
    assert metrics["fvu"] is None
    assert metrics["relative_error"].value == pytest.approx(0.75)


def test_pca_baseline_equals_the_eigenvalues_left_out() -> None:
    x, document = data()
    pca = PCA.fit(x.split(100))
    baselines = evaluate(autoencoder(12, torch.eye(12)), x, document, pca).baselines(k=4, **DRAWS)
    values = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    assert baselines["pca_fvu"].value == pytest.approx((values[4:].sum() / values.sum()).item(), rel=1e-6)
    assert baselines["mean_fvu"].value == pytest.approx(1, rel=1e-9)


def test_pca_components_for_the_same_fvu_is_the_smallest_number() -> None:
    x, document = data()
    pca = PCA.fit([x])
    model = autoencoder(12, pca.components[:4].float(), pca.mean.float())
    baselines = evaluate(model, x, document, pca).baselines(k=4, **DRAWS)
    assert baselines["pca_components_for_same_fvu"] in (4, 5), "rounding may cost one"


def test_pca_needs_a_second_component_for_what_one_and_a_half_of_them_explain() -> None:
    x, document = data()
    pca = PCA.fit([x])
    halved = pca.components[:2].float() * torch.tensor([[1.0], [math.sqrt(0.5)]])
    baselines = evaluate(autoencoder(12, halved, pca.mean.float()), x, document, pca).baselines(k=1, **DRAWS)
    assert baselines["pca_components_for_same_fvu"] == 2


def test_a_model_no_better_than_the_mean_needs_no_component() -> None:
    x, document = data()
    model = autoencoder(12, torch.zeros(4, 12), x.mean(0) + 1)
    assert evaluate(model, x, document, PCA.fit([x])).baselines(k=4, **DRAWS)["pca_components_for_same_fvu"] == 0


def test_reconstruction_bias_of_a_shrunk_output_is_its_factor() -> None:
    x, document = data()
    metrics = evaluate(autoencoder(12, math.sqrt(0.5) * torch.eye(12)), x, document).metrics(**DRAWS)
    assert metrics["norm_ratio"].value == pytest.approx(0.5, rel=1e-5)
    assert metrics["reconstruction_bias"].value == pytest.approx(0.5, rel=1e-5)


def test_norm_ratio_leaves_out_rows_of_zeros() -> None:
    x, document = data()
    x[7] = 0
    metrics = evaluate(autoencoder(12, math.sqrt(0.5) * torch.eye(12)), x, document).metrics(**DRAWS)
    assert metrics["norm_ratio"].value == pytest.approx(0.5, rel=1e-5)


def test_sums_of_parts_around_any_point_give_the_fvu_of_the_definition() -> None:
    x, _ = data()
    x_hat = 0.9 * x
    expected = (0.1 * x.double()).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    parts = [fvu_sums(a, b, torch.full((12,), 4.0)) for a, b in zip(x.split(250), x_hat.split(250), strict=True)]
    added = {name: sum(part[name] for part in parts) for name in parts[0]}
    rows = {name: row.sum(0) for name, row in fvu_sums(x, x_hat, by_row=True).items()}
    for sums in (added, rows, fvu_sums(x, x_hat)):
        assert fvu_of("error", sums).item() == pytest.approx(expected.item(), rel=1e-6)
    assert "error" not in fvu_sums(x)


def test_l0_is_the_mean_number_of_codes_that_are_not_zero() -> None:
    x, document = data()
    evaluation = evaluate(autoencoder(12, torch.eye(12), x.mean(0), TopK(3)), x, document)
    dense = torch.relu((x - x.mean(0)).topk(3).values)
    assert evaluation.metrics(**DRAWS)["l0"].value == pytest.approx((dense > 0).sum(1).double().mean().item())


def test_densities_hold_known_firing_rates_in_their_half_decades() -> None:
    x = torch.zeros(900, 5)
    for latent, firings in enumerate((900, 300, 30, 1)):  # log10 of the rates: 0, -.48, -1.48, -2.95; the last is dead
        x[:firings, latent] = 1.0
    histogram = evaluate(autoencoder(5, torch.eye(5), None, TopK(5)), x, torch.arange(900) // 30).densities()
    assert histogram["log10_edges"] == pytest.approx([-6 + bin / 2 for bin in range(13)])
    assert histogram["latents"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 2]
    assert histogram["never"] == 1


def test_a_negative_code_fires_as_it_counts_in_l0() -> None:
    x = torch.zeros(100, 3)
    x[:, 0], x[:20, 1] = -1.0, -2.0
    evaluation = evaluate(autoencoder(3, torch.eye(3)), x, torch.arange(100) // 10)
    assert evaluation.metrics(**DRAWS)["l0"].value == pytest.approx(1.2)
    assert evaluation.fired.tolist() == [100, 20, 0]
    assert evaluation.dead().value == pytest.approx(1 / 3)
    assert evaluation.densities()["latents"][-3:] == [0, 1, 1]


def test_a_codebook_s_rates_are_shares_of_the_rows_and_not_of_the_images() -> None:
    config = VisionConfig(variant="vqvae", width=4, code_dim=3, channels=(8,))
    model = recipe_of(config, (1, 8, 8), 20).model
    model.initialise(torch.Generator().manual_seed(0))
    model.dictionary.W.data[1:] = 1e3  # every row of every image chooses the first
    x = torch.rand(20, 64, generator=torch.Generator().manual_seed(1))
    evaluation = evaluate(model, x, torch.arange(20))
    assert evaluation.fired.tolist() == [20 * 16, 0, 0, 0]
    assert evaluation.densities()["latents"] == [0] * 11 + [1]
    model.dictionary.W.data[1] = model.dictionary.W.data[0]
    few = Reconstruction(model, torch.zeros(64), None)
    few.fired[0], few.tokens = 20, 20  # chosen in 20 of 320 rows: log10 is -1.2
    assert few.densities()["latents"] == [0] * 9 + [1, 0, 0]


def test_dead_share_and_its_jackknife() -> None:
    """Two latents of four: one fires in every document, one in a single document of ten, two never."""
    document = torch.arange(10).repeat_interleave(5)
    x = torch.zeros(50, 4)
    x[:, 0] = 1.0
    x[20:25, 1] = 2.0
    x[:, 2:] = -1.0
    evaluation = evaluate(autoencoder(4, torch.eye(4), None, TopK(2)), x, document, size=7)
    dead = evaluation.dead()
    assert dead.value == 0.5
    killed = np.array([0.25 if d == 4 else 0.0 for d in range(10)])
    error = math.sqrt(9 / 10 * ((killed - killed.mean()) ** 2).sum())
    assert dead.high == pytest.approx(0.5 + 1.96 * error)
    assert dead.low == pytest.approx(max(0.0, 0.5 - 1.96 * error))


def test_leaving_out_a_group_of_documents_kills_what_fires_in_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent 1 fires in documents 2 and 3, which share a group; latent 2 in 3 and 4, which do not; 8 in 4 groups."""
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 4)
    x = torch.zeros(8, 4)
    x[:, 0], x[2:4, 1], x[3:5, 2] = 1.0, 1.0, 1.0
    dead = evaluate(autoencoder(4, torch.eye(4), None, TopK(4)), x, torch.arange(8)).dead()
    killed = np.array([0, 0.25, 0, 0])
    error = math.sqrt(3 / 4 * ((killed - killed.mean()) ** 2).sum())
    assert dead.value == 0.25
    assert dead.high == pytest.approx(0.25 + 1.96 * error)


def test_one_group_has_no_bounds_and_they_are_null_in_json() -> None:
    x, _ = data()
    evaluation = evaluate(autoencoder(12, torch.eye(12)[:5], x.mean(0)), x, torch.zeros(900, dtype=torch.int64))
    metrics = evaluation.metrics(**DRAWS)
    for name in ("fvu", "l0", "dead", "cosine"):
        assert math.isnan(metrics[name].low), name
        assert math.isnan(metrics[name].high), name
        found = bootstrap.plain(metrics)[name]
        assert found == {"value": metrics[name].value, "low": None, "high": None}
    json.dumps(bootstrap.plain(metrics), allow_nan=False)


@pytest.mark.parametrize(("groups", "bounded"), [(2, False), (3, False), (5, True)])
def test_bounds_need_nearly_all_resamples_to_be_defined(groups: int, bounded: bool) -> None:
    """One group of g has nothing to divide by: a resample of it alone is undefined, a share g^-g of them."""
    sums = GroupSums()
    count = torch.ones(groups)
    count[0] = 0
    sums.add(torch.arange(groups), {"value": torch.arange(groups) * count, "count": count})
    interval = sums.interval(ratio("value", "count"), resamples=2000, seed=0)
    assert interval is not None
    assert interval.value == pytest.approx((groups - 1) * groups / 2 / (groups - 1))
    assert math.isnan(interval.low) == math.isnan(interval.high) == (not bounded)


def test_interval_of_a_mean_matches_the_normal_formula() -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=draw, dtype=torch.float64)
    sums = GroupSums()
    sums.add(torch.arange(400), {"value": values, "count": torch.ones(400)})
    interval = sums.interval(ratio("value", "count"), resamples=4000, seed=0)
    half = 1.96 * values.std().item() / 20
    assert interval.value == pytest.approx(values.mean().item())
    assert interval.high - interval.value == pytest.approx(half, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half, rel=0.1)


def test_resampling_draws_whole_documents() -> None:
    """Ten equal tokens in each of 20 documents: the interval is that of 20 values, not of 200."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(20, generator=draw, dtype=torch.float64)
    sums = GroupSums()
    sums.add(torch.arange(20).repeat_interleave(10), {"v": values.repeat_interleave(10), "n": torch.ones(200)})
    interval = sums.interval(ratio("v", "n"), resamples=4000, seed=0)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std().item() / math.sqrt(20), rel=0.15)


def test_many_documents_share_groups_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 16)
    values = torch.arange(1000, dtype=torch.float64)
    sums = GroupSums()
    for start in range(0, 1000, 90):
        part = slice(start, start + 90)
        sums.add(torch.arange(1000)[part], {"v": values[part], "n": torch.ones(len(values[part]))})
    assert sums.groups <= 16
    assert sums.documents == 1000
    assert sums.sums["v"].sum() == values.sum()
    direct = [values[sums.group(torch.arange(1000)) == g].sum().item() for g in range(sums.groups)]
    assert sums.sums["v"].tolist() == direct


def test_resample_weights_draw_as_many_groups_as_there_are() -> None:
    weights = resample_weights(7, 500, seed=0)
    assert (weights.sum(1) == 7).all()
    assert weights.mean().item() == pytest.approx(1)
    assert not torch.equal(weights, resample_weights(7, 500, seed=1))
