"""What every evaluation must hold, one closed form a test; then every metric against the shortest code for it.

Predicting the mean has FVU 1; the identity has FVU 0, adds no cross-entropy and recovers all of it; scale, batch size
and order change nothing, nor do folding and export; a permuted dictionary is the same; straight-through gradients are
the slopes of what they smooth (penalties in `tests/modules/test_losses.py`, codebooks in `test_image_modules.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluated import DRAWS, autoencoder, data, evaluate, measured, near
from made_runs import activations, made_run
from sae.evaluation import random_dictionary
from sae.evaluation.baselines import PCA
from sae.evaluation.control_table import control_rows, sentences
from sae.evaluation.controls import Encoded, controls_of, largest_channels, principal, shuffled_atoms
from sae.evaluation.random_dictionary import train_random_dictionary
from sae.evaluation.reconstruction import Reconstruction
from sae.evaluation.stability import pair_cosines
from sae.harvest.stream import Harvest
from sae.interop import read
from sae.interop.export import WRITERS, export
from sae.models.saved import load
from sae.modules.codes import TopK
from sae.modules.normalise import fit
from straight_through import PLACES, THETA, WIDTH, gradients, smoothed_slope


def test_predicting_the_mean_has_fvu_one() -> None:
    x, document = data()
    metrics = evaluate(autoencoder(12, torch.zeros(4, 12), x.double().mean(0)), x, document).metrics(**DRAWS)
    assert metrics["fvu"].value == pytest.approx(1, rel=1e-6)
    assert metrics["fvu"].low >= 1 - 1e-6, "no resample's mean is predicted better than by itself"
    assert metrics["l0"].value == 0
    assert metrics["dead"].value == 1


def test_identity_has_fvu_zero() -> None:
    x, document = data()
    metrics = evaluate(autoencoder(12, torch.eye(12)), x, document).metrics(**DRAWS)
    assert metrics["fvu"].value == pytest.approx(0, abs=1e-12)
    assert metrics["cosine"].value == pytest.approx(1, abs=1e-6)
    assert metrics["norm_ratio"].value == pytest.approx(1, abs=1e-6)
    assert metrics["reconstruction_bias"].value == pytest.approx(1, abs=1e-6)


def test_identity_costs_nothing(harvest: Harvest) -> None:
    dim = harvest.sites[0].width
    metrics = measured(harvest, autoencoder(dim, torch.eye(dim), torch.zeros(dim)), torch.zeros(dim))
    assert metrics["delta_ce"].value == pytest.approx(0, abs=1e-5)
    assert metrics["delta_ce_everywhere"].value == pytest.approx(0, abs=1e-5)
    assert metrics["kl"].value == pytest.approx(0, abs=1e-5)
    assert metrics["ce_recovered_zero"].value == pytest.approx(1, abs=1e-3)
    assert metrics["ce_recovered_mean"].value == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_scaling_the_data_changes_no_metric(factor: float) -> None:
    x, document = data()
    keep = torch.eye(12)[:5]
    one = evaluate(autoencoder(12, keep, x.mean(0)), x, document).metrics(**DRAWS)
    other = evaluate(autoencoder(12, keep, x.mean(0) * factor), x * factor, document).metrics(**DRAWS)
    for name in ("fvu", "cosine", "norm_ratio", "reconstruction_bias", "relative_error"):
        assert other[name].value == pytest.approx(one[name].value, rel=1e-5), name


@pytest.mark.parametrize("size", [1, 7, 64, 899])
def test_batch_size_changes_nothing(size: int) -> None:
    x, document = data()
    model = autoencoder(12, torch.eye(12), x.mean(0), TopK(3))
    one, other = evaluate(model, x, document), evaluate(model, x, document, size=size)
    assert one.metrics(**DRAWS) == {k: near(v) for k, v in other.metrics(**DRAWS).items()}
    assert one.densities() == other.densities()


def test_row_order_inside_documents_changes_no_value() -> None:
    x, document = data()
    model = autoencoder(12, torch.eye(12), x.mean(0), TopK(3))
    draw = torch.Generator().manual_seed(2)
    order = torch.argsort(document + torch.rand(len(x), generator=draw) * 0.9, stable=True)
    one, other = evaluate(model, x, document), evaluate(model, x[order], document[order])
    assert other.metrics(**DRAWS)["fvu"].value == pytest.approx(one.metrics(**DRAWS)["fvu"].value, rel=1e-9)


def test_folding_the_normalisation_in_changes_no_metric() -> None:
    """On raw rows the folded form has the metrics that the trained form has on normalised ones."""
    x, document = data()
    affine = fit("scale", x, [12])
    atoms = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    model = autoencoder(12, torch.nn.functional.normalize(atoms, dim=1), None, TopK(3))
    trained = evaluate(model, affine.apply(x), document).metrics(**DRAWS)
    folded = evaluate(model.folded(affine, affine), x, document).metrics(**DRAWS)
    assert folded == {name: near(value) for name, value in trained.items()}


@pytest.mark.parametrize("to", [to for to in WRITERS if to != "circuit-tracer"])
def test_export_changes_no_metric(to: str, tmp_path: Path) -> None:
    run, out = made_run(tmp_path / "run", "topk", "scale"), tmp_path / "out"
    export(run, to, out)
    x, document = activations(200, 32, seed=3), torch.arange(200) // 10
    ours, theirs = (
        evaluate(model, x, document).metrics(**DRAWS)
        for model in (load(run), read(out / "resid_post.1" if to == "sparsify" else out).model)
    )
    assert ours == {name: near(value) for name, value in theirs.items()}


def test_a_permuted_sign_flipped_scaled_copy_is_the_same_dictionary() -> None:
    first = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
    copy = (factors * first)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert pair_cosines([first, copy]) == pytest.approx((1,))


def test_the_value_s_estimate_is_the_slope_of_the_smoothed_jump() -> None:
    found, _ = gradients(of_values=True)
    for place, pre in enumerate(PLACES):
        # the pre-activation is blurred by the kernel, as the loss is by the spread of the data (eq. 11)
        slope = smoothed_slope(lambda u, theta, pre=pre: torch.where(pre + u > theta, pre + u, 0), THETA, WIDTH)
        assert found[place].item() == pytest.approx(slope, rel=2e-3, abs=1e-9), pre


def test_the_step_s_estimate_is_the_slope_of_the_smoothed_step() -> None:
    found, _ = gradients(of_values=False)
    for place, pre in enumerate(PLACES):
        slope = smoothed_slope(lambda u, theta, pre=pre: (pre > theta + u).double(), THETA, WIDTH)
        assert found[place].item() == pytest.approx(slope, rel=2e-3, abs=1e-9), pre


def test_every_metric_is_that_of_the_shortest_code_for_it() -> None:
    x, document = data()
    model = autoencoder(12, torch.randn(30, 12, generator=torch.Generator().manual_seed(1)) / 4, x.mean(0), TopK(3))
    metrics = evaluate(model, x, document, size=70).metrics(**DRAWS)
    codes, x_hat = model(x)
    x, x_hat, dense = x.double(), x_hat.double(), codes.to_dense()
    expected = {
        "fvu": (x - x_hat).square().sum() / (x - x.mean(0)).square().sum(),
        "l0": (dense != 0).sum(1).double().mean(),
        "dead": (dense == 0).all(0).double().mean(),
        "cosine": torch.cosine_similarity(x, x_hat).mean(),
        "norm_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean(),
        "reconstruction_bias": x_hat.square().sum() / (x * x_hat).sum(),
        "relative_error": (x - x_hat).square().sum() / x.square().sum(),
    }
    assert metrics.keys() == expected.keys() | {"tokens", "documents"}
    for name, value in expected.items():
        assert metrics[name].value == pytest.approx(value.item(), rel=1e-6), name


def controlled(k: int = 3) -> tuple[Reconstruction, Tensor, dict[str, Tensor]]:
    """An evaluation with all controls, its rows, and what each control makes of them."""
    x, document = data()
    pca = PCA.fit([x[:500]])
    model = autoencoder(12, torch.randn(30, 12, generator=torch.Generator().manual_seed(1)) / 4, x.mean(0), TopK(k))
    dictionary = train_random_dictionary(x[:500], x[:500], model, k=k, seed=0)
    controls = controls_of("all", model, pca, dictionary, k=k)
    reconstruction = Reconstruction(model, x.mean(0) + 1, pca, controls)
    for rows, documents in zip(x.split(70), document.split(70), strict=True):
        reconstruction.add(rows, rows, documents)
    codes, _ = model(x)
    rows = Encoded(x, x, codes)
    attempts = {c.name: c.attempt(rows).reconstruction for c in [*(controls or ()), principal(pca, k)]}
    return reconstruction, x, {"the mean": x.mean(0).expand_as(x)} | attempts


def test_every_number_of_a_control_is_that_of_the_shortest_code_for_it() -> None:
    reconstruction, x, attempts = controlled()
    rows = {row["control"]: row for row in control_rows(reconstruction, None, k=3, **DRAWS)}
    assert attempts.keys() <= rows.keys()
    x, own = x.double(), reconstruction.metrics(**DRAWS)
    for name, attempt in attempts.items():
        x_hat = attempt.double()
        expected = {
            "fvu": (x - x_hat).square().sum() / (x - x.mean(0)).square().sum(),
            "cosine": torch.cosine_similarity(x, x_hat).mean(),
            "reconstruction_bias": x_hat.square().sum() / (x * x_hat).sum(),
            "relative_error": (x - x_hat).square().sum() / x.square().sum(),
        }
        for number, value in expected.items():
            assert rows[name][number].value == pytest.approx(value.item(), rel=1e-5), (name, number)
        difference = rows[name]["difference"]["fvu"]
        assert difference.value == pytest.approx(rows[name]["fvu"].value - own["fvu"].value)
    assert rows["the mean"]["fvu"].value == pytest.approx(1)
    assert [rows[name]["l0"].value for name in ("the mean", "PCA, 3 components", "the 3 largest channels")] == [0, 3, 3]
    assert rows["shuffled atoms"]["l0"] == near(own["l0"]), "the codes are the autoencoder's"
    assert rows["random dictionary"]["training"] == {"tokens": 500, "epochs": 8}


def test_the_largest_channels_are_exact_and_the_rest_is_the_mean() -> None:
    x, mean = torch.tensor([[5.0, 1.0, -4.0, 2.0]]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    rows = Encoded(x, x, autoencoder(4, torch.eye(4)).encode(x))
    assert largest_channels(mean, 2).attempt(rows).reconstruction.tolist() == [[5, 1, -4, 1]]
    assert largest_channels(mean, 4).attempt(rows).reconstruction.equal(x)


def test_shuffled_atoms_are_the_autoencoders_in_another_order() -> None:
    model = autoencoder(40, torch.eye(40))
    x = torch.randn(50, 40)
    attempt = shuffled_atoms(model).attempt(Encoded(x, x, model.encode(x)))
    assert attempt.reconstruction.sort(1).values.equal(x.sort(1).values)
    assert not torch.allclose(attempt.reconstruction, x)


def test_a_random_dictionary_keeps_its_atoms_and_learns_to_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    x, document = data()
    x = x - x.mean(0)
    like = autoencoder(12, torch.zeros(30, 12))
    trained = train_random_dictionary(x, x, like, k=4, seed=0).model
    monkeypatch.setattr(random_dictionary, "EPOCHS", 0)
    untrained = train_random_dictionary(x, x, like, k=4, seed=0).model
    atoms, expected = (torch.nn.functional.normalize(m.dictionary.W, dim=1) for m in (trained, untrained))
    assert torch.allclose(atoms, expected, atol=1e-5)
    before, after = (evaluate(model, x, document).metrics(**DRAWS)["fvu"].value for model in (untrained, trained))
    assert after < 0.8 * before


def test_sentences_name_the_controls_that_are_as_good() -> None:
    def interval(value: float, low: float, high: float) -> dict[str, float]:
        return {"value": value, "low": low, "high": high}

    def row(name: str, fvu: float, low: float, high: float) -> dict:
        return {"control": name, "fvu": interval(fvu, fvu, fvu), "difference": {"fvu": interval(fvu - 0.2, low, high)}}

    report = {
        "fvu": interval(0.2, 0.1, 0.3),
        "baselines": {"pca_components_for_same_fvu": 7},
        "controls": [
            row("worse", 0.5, 0.2, 0.4),
            row("alike", 0.21, -0.01, 0.03),
            row("better", 0.1, -0.2, -0.05),
            row("PCA, 7 components", 0.2, -0.01, 0.01),
        ],
    }
    assert sentences(report) == [
        "alike: FVU 0.21, not told apart from the autoencoder's 0.2",
        "better: FVU 0.1, better than the autoencoder's 0.2",
    ]
