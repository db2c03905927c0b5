"""Disentanglement against golden matrices, closed forms and brute force; ceilings and floors of every score.

The golden values are those of Locatello et al.'s library: `ONE_EACH` is 5 codes of 5 factors, one each; stacked on
itself it is ten codes, each factor in two of them ("duplicated"); side by side with itself, five codes of two factors
each out of ten.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from sae.book.measures.disentanglement import fixed
from sae.book.measures.disentanglement.arrays import live_latents, split
from sae.book.measures.disentanglement.dci import dci, dci_of
from sae.book.measures.disentanglement.fixed import beta_vae_score, draw_from_encoder, draw_from_table, factor_vae_score
from sae.book.measures.disentanglement.information import binned, mig_of, modularity_of, mutual_information
from sae.book.measures.disentanglement.irs import irs, irs_of
from sae.book.measures.disentanglement.sap import _accuracies, sap, sap_of
from sae.book.measures.disentanglement.scores import controls, disentanglement

ONE_EACH = 5.0 * np.eye(5)
DUPLICATED = np.vstack([ONE_EACH, ONE_EACH])
TWO_FACTORS_A_CODE = np.hstack([ONE_EACH, ONE_EACH])
EMPTY_CODE = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
HALF = 1 - math.log(2) / math.log(10)


def some_factors(n: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(sizes, size=(n, len(sizes)))


def rotated(factors: np.ndarray) -> np.ndarray:
    """Codes in which every factor is spread evenly over all latents."""
    centred = (factors - factors.mean(0)) / factors.std(0)
    width = factors.shape[1]
    angle = np.outer(np.arange(width), np.arange(width)) * 2 * np.pi / width
    return centred @ (np.cos(angle) + np.sin(angle)) / math.sqrt(width)  # Hartley's matrix, orthogonal


@pytest.mark.parametrize(
    ("importance", "disentangled", "complete"),
    [
        (ONE_EACH, 1, 1),
        (DUPLICATED, 1, HALF),
        (TWO_FACTORS_A_CODE, HALF, 1),
        (EMPTY_CODE, 1, 1),
        (ONE_EACH[:2], 1, 1),
        (np.ones((10, 10)), 0, 0),
        (np.zeros((10, 10)), 0, 0),
    ],
    ids=["one each", "duplicated", "two factors a code", "empty code", "factors missed", "even", "nothing"],
)
def test_golden_disentanglement_and_completeness(importance: np.ndarray, disentangled: float, complete: float) -> None:
    assert dci_of(importance) == pytest.approx((disentangled, complete), abs=1e-12)


@pytest.mark.parametrize(
    ("information", "modularity"),
    [
        (ONE_EACH, 1),
        (DUPLICATED, 1),
        (TWO_FACTORS_A_CODE, 1 - 1 / 9),  # the other of two, squared and equal, over K - 1 = 9 others
        (EMPTY_CODE, 2 / 3),  # two codes of 1, one of 0
        (ONE_EACH[:2], 1),
        (np.zeros((10, 10)), 0),
    ],
    ids=["one each", "duplicated", "two factors a code", "empty code", "factors missed", "nothing"],
)
def test_golden_modularity(information: np.ndarray, modularity: float) -> None:
    assert modularity_of(information) == pytest.approx(modularity, abs=1e-12)


def test_golden_mig_of_matrices() -> None:
    entropies = np.full(5, 5.0)
    assert mig_of(ONE_EACH, entropies) == pytest.approx(1)
    assert mig_of(DUPLICATED, entropies) == 0
    assert mig_of(ONE_EACH[:1], entropies) == pytest.approx(1 / 5)  # one latent: nothing is second
    assert mig_of(np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([4.0, 2.0])) == pytest.approx((2 / 4 + 0) / 2)


def test_golden_scores_of_duplicated_codes() -> None:
    factors = some_factors(4000, (10, 10, 10, 10, 10))
    once, twice = factors.astype(float), np.hstack([factors, factors]).astype(float)
    assert mig_of(*mutual_information(once, factors)) > 0.98
    assert mig_of(*mutual_information(twice, factors)) <= 0.1
    assert modularity_of(mutual_information(twice, factors).matrix) > 0.98
    found = dci(twice, factors, trees="extra")
    assert found.disentanglement > 0.98
    assert found.completeness == pytest.approx(HALF, abs=0.05)


def test_mutual_information_is_scikit_learns_of_the_same_bins() -> None:
    factors = some_factors(700, (3, 7))
    rng = np.random.default_rng(1)
    codes = np.stack([factors[:, 0] + rng.normal(size=700), rng.exponential(size=700), np.zeros(700)], 1)
    bins = np.stack([np.digitize(z, np.histogram(z, 20)[1][:-1]) for z in codes.T], 1)
    want = [[mutual_info_score(v, b) for v in factors.T] for b in bins.T]
    found = mutual_information(torch.tensor(codes), torch.tensor(factors))
    np.testing.assert_allclose(found.matrix, want, atol=1e-12)
    np.testing.assert_allclose(found.entropies, [mutual_info_score(v, v) for v in factors.T])
    assert binned(codes).max() == 19


def test_twenty_bins_cap_a_factor_of_forty_values() -> None:
    factors = np.stack(np.meshgrid(np.arange(40), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    codes = factors.astype(float)
    assert mig_of(*mutual_information(codes, factors)) == pytest.approx((math.log(20) / math.log(40) + 1) / 2)


def test_chen2018_matches_the_closed_form_of_separate_gaussians() -> None:
    factors = some_factors(400, (4, 3))
    means = np.stack([100.0 * factors[:, 0], np.zeros(400)], 1)
    found = mutual_information(means, factors, protocol="chen2018", log_variances=np.zeros((400, 2)))
    # the modes don't overlap: z_0 tells v_0 whole, which is its entropy; v_1 and z_1 have nothing to do with each other
    entropy = mutual_info_score(factors[:, 0], factors[:, 0])
    assert found.matrix[0, 0] == pytest.approx(entropy, abs=0.06)
    assert np.abs(found.matrix[[0, 1, 1], [1, 0, 1]]).max() < 0.06
    np.testing.assert_allclose(found.entropies, [math.log(4), math.log(3)])


def test_chen2018_weighs_values_by_how_often_they_come() -> None:
    """Value 0 in 9 of 10 samples with deviation 1, value 1 with deviation e³, far apart: I is the factor's entropy."""
    factor = (np.arange(400) % 10 == 0).astype(int)
    factors = np.stack([factor, np.arange(400) % 2], 1)
    means = np.stack([1e4 * factor, np.zeros(400)], 1)
    spread = np.stack([6.0 * factor, np.zeros(400)], 1)
    found = mutual_information(means, factors, protocol="chen2018", log_variances=spread, samples=4000)
    assert found.matrix[0, 0] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=0.06)


def test_chen2018_finds_information_where_there_is_none_if_posteriors_are_narrow() -> None:
    """The bias that the module's text gives figures of."""
    factors = some_factors(500, (4, 4))
    means = np.random.default_rng(0).normal(size=(500, 4))

    def share(deviation: float) -> float:
        spread = np.full((500, 4), 2 * math.log(deviation))
        found = mutual_information(means, factors, protocol="chen2018", log_variances=spread)
        return float((found.matrix / found.entropies).mean())

    assert [share(deviation) for deviation in (0.1, 0.01, 0.001)] == pytest.approx([0.04, 0.28, 0.82], abs=0.03)


def test_chen2018_sees_the_posterior_noise_that_means_hide() -> None:
    factors = some_factors(200, (2, 2))
    means, noisy = factors.astype(float), np.full((200, 2), 2 * math.log(5))
    assert mig_of(*mutual_information(means, factors)) > 0.9
    # two Gaussians one apart with deviation 5: I is about (1/2)² / (2 · 25) nats, of ln 2
    assert mig_of(*mutual_information(means, factors, protocol="chen2018", log_variances=noisy, samples=4000)) < 0.06


def test_protocols_refuse_what_they_cannot_read() -> None:
    factors = some_factors(50, (2, 2))
    codes = factors.astype(float)
    with pytest.raises(ValueError, match="chen2018 needs"):
        mutual_information(codes, factors, protocol="chen2018")
    with pytest.raises(ValueError, match="locatello2019 reads means alone"):
        mutual_information(codes, factors, log_variances=codes)
    with pytest.raises(ValueError, match="expected the codes' shape"):
        mutual_information(codes, factors, protocol="chen2018", log_variances=codes[:, :1])
    broken = np.where(np.arange(100).reshape(50, 2) == 7, -np.inf, 0.0)
    with pytest.raises(ValueError, match="log_variances: expected finite numbers, got 1 that are not"):
        mutual_information(codes, factors, protocol="chen2018", log_variances=broken)
    with pytest.raises(ValueError, match="did you mean 'chen2018'"):
        mutual_information(codes, factors, protocol="chen2019")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("codes", "factors", "said"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2), int), "same n"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "expected integers"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "at least two columns"),
        (np.full((3, 2), np.nan), np.eye(3, dtype=int), "6 that are not"),
        (np.zeros((3, 2)), np.array([[0, 5], [1, 5], [2, 5]]), r"columns \[1\] have one value"),
    ],
    ids=["lengths", "floats", "one factor", "nan", "constant factor"],
)
def test_what_cannot_be_scored_is_refused(codes: np.ndarray, factors: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        disentanglement(codes, factors)


def test_factors_count_by_their_values_and_not_their_names() -> None:
    factors = some_factors(500, (4, 3))
    codes = rotated(factors) + np.random.default_rng(0).normal(size=(500, 2)) / 5
    renamed = factors * 1000 - 7
    assert mig_of(*mutual_information(codes, renamed)) == mig_of(*mutual_information(codes, factors))


def test_controls_give_the_ceiling_and_the_floor() -> None:
    factors = some_factors(3000, (4, 4, 4))
    codes = rotated(factors)
    scores = {name: disentanglement(z, v, trees="extra") for name, (z, v) in controls(codes, factors).items()}
    ceiling, floor = scores["true_factors"], scores["shuffled_labels"]
    middle = disentanglement(codes, factors, trees="extra")
    for name in ("disentanglement", "completeness", "informativeness", "modularity", "mig", "irs"):
        assert getattr(ceiling, name) > 0.98, name
    for name in ("disentanglement", "completeness", "mig"):
        assert getattr(floor, name) < 0.05, name
    assert floor.informativeness == pytest.approx(1 / 4, abs=0.05)
    assert floor.modularity < 0.5
    assert floor.irs < 0.2
    # a rotation hides nothing from all latents together, and has every latent serve every factor
    assert middle.informativeness > 0.95
    assert middle.disentanglement < 0.5
    assert middle.mig < 0.3


def test_boosted_trees_find_the_factors_too() -> None:
    factors = some_factors(1500, (3, 4))
    noise = np.random.default_rng(1).normal(size=(1500, 2))
    found = dci(np.hstack([factors, noise]), factors, train=1000, test=500)
    assert found.disentanglement > 0.95
    assert found.completeness > 0.95
    assert found.informativeness > 0.98
    assert found.importance[:2].argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(found.importance.sum(0), 1)


@pytest.mark.parametrize("seed", [0, 15, 47, 78])
def test_importances_below_zero_by_rounding_do_no_harm(seed: int) -> None:
    # with these samples a split that gains nothing comes out at about -1e-16
    rng = np.random.default_rng(seed)
    factor = rng.integers(2, size=400)
    codes = np.hstack([(factor / 2 + rng.normal(size=400) * 0.05)[:, None], rng.normal(size=(400, 4))])
    found = dci(codes.astype(np.float32), np.stack([factor, 1 - factor], 1), train=399, test=1)
    assert found.importance.min() >= 0
    assert found.completeness > 0.98


def test_dead_latents_change_nothing_unless_asked_for() -> None:
    factors = some_factors(800, (4, 4))
    codes = factors.astype(float)
    dead = np.hstack([codes, np.zeros((800, 6))])
    alone, with_dead = disentanglement(codes, factors, trees="extra"), disentanglement(dead, factors, trees="extra")
    for name in ("disentanglement", "completeness", "informativeness", "modularity", "mig", "irs", "live"):
        assert getattr(with_dead, name) == pytest.approx(getattr(alone, name)), name
    assert with_dead.live == 2
    assert with_dead.importance.shape == (8, 2)
    counted = disentanglement(dead, factors, trees="extra", live=False)
    assert counted.modularity == pytest.approx(alone.modularity * 2 / 8)
    assert live_latents(dead).tolist() == [True] * 2 + [False] * 6


def test_a_collapsed_code_scores_nothing() -> None:
    factors = some_factors(400, (2, 4))
    scores = disentanglement(np.full((400, 3), 0.5), factors)
    assert scores[:2] == (0, 0)
    assert scores[3:7] == (0, 0, 0, 0)
    assert scores.informativeness == pytest.approx((1 / 2 + 1 / 4) / 2, abs=0.06)


def test_sap_is_the_gap_between_the_two_best() -> None:
    assert sap_of(np.array([[0.9, 0.2], [0.5, 0.6], [0.1, 0.3]])) == pytest.approx((0.4 + 0.3) / 2)
    with pytest.raises(ValueError, match="L >= 2"):
        sap_of(np.ones((1, 3)))


def test_sap_of_continuous_factors_is_that_of_squared_correlations() -> None:
    factors = some_factors(500, (9, 5))
    codes = np.hstack([rotated(factors), np.zeros((500, 1))])
    table = np.square(np.corrcoef(codes[:, :2].T, factors.T)[:2, 2:])
    want = sap_of(np.vstack([table, np.zeros(2)]))
    assert sap(codes, factors, continuous=True) == pytest.approx(want)
    assert sap(factors.astype(float), factors, continuous=[True, True]) > 0.98


def test_sap_of_categorical_factors_tells_one_latent_from_two() -> None:
    factors = some_factors(900, (2, 2))
    alone = np.hstack([factors, np.random.default_rng(0).normal(size=(900, 1))])
    assert sap(alone, factors) > 0.4  # all against half, which is chance
    assert sap(np.hstack([factors, factors]).astype(float), factors) == 0


def test_sap_of_a_factor_with_one_value_in_the_fitted_half_is_no_gap() -> None:
    factors = np.stack([np.arange(10) % 2, np.zeros(10, int)], 1)
    fitted, held = split(10, 2000, 2000, seed=0)
    factors[held[0], 1] = 1
    codes = np.random.default_rng(0).normal(size=(10, 2))
    alone = _accuracies(codes, factors[:, 1], fitted, held, seed=0)
    assert alone.tolist() == pytest.approx([1 - 1 / len(held)] * 2)
    assert 0 <= sap(codes, factors) <= 0.5


def test_irs_is_that_of_the_definition() -> None:
    factors = some_factors(300, (3, 4))
    codes = np.random.default_rng(2).normal(size=(300, 2)) + factors
    wanted, weights = [], []
    for z in codes.T:
        largest = max(abs(z - z.mean()))
        robust = []
        for v in factors.T:
            groups = [z[v == value] for value in np.unique(v)]
            robust.append(1 - np.mean([max(abs(g - g.mean())) for g in groups]) / largest)
        wanted.append(max(robust))
        weights.append(largest)
    assert irs(codes, factors, quantile=1) == pytest.approx(np.average(wanted, weights=weights))
    assert irs(factors.astype(float), factors) == pytest.approx(1)
    assert irs_of(np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0]]), np.array([2.0, 4.0, 0.0])) == pytest.approx(
        (1 * 2 + 0.25 * 4) / 6
    )
    with pytest.raises(ValueError, match="quantile 0"):
        irs(codes, factors, quantile=0)


SIZES = (3, 4, 5)


@pytest.mark.parametrize("score", ["factor", "beta"])
def test_scores_with_a_factor_fixed_name_it_from_true_factors_and_not_from_noise(score: str) -> None:
    factors = some_factors(2000, SIZES)
    noise = np.random.default_rng(0).normal(size=(2000, 3))

    def scored(codes: np.ndarray) -> float:
        draw = draw_from_table(codes, factors)
        if score == "factor":
            return factor_vae_score(draw, SIZES, codes, train=600, test=600).test
        return beta_vae_score(draw, SIZES, train=600, test=600).test

    assert scored(factors.astype(float)) > 0.99
    assert scored(noise) == pytest.approx(1 / 3, abs=0.08)


def test_factor_vae_score_of_a_code_that_misses_a_factor() -> None:
    factors = some_factors(3000, (4, 4, 4, 4))
    codes = factors[:, :3] * np.array([1.0, 100.0, 0.01])
    found = factor_vae_score(draw_from_table(codes, factors), (4, 4, 4, 4), codes, train=2000, test=2000)
    # three factors are named every time; under the fourth nothing keeps still, and the votes go elsewhere
    assert found.test == pytest.approx(3 / 4, abs=0.04)


def test_latents_that_never_vary_have_no_vote() -> None:
    factors = some_factors(1000, SIZES)
    codes = np.hstack([np.ones((1000, 2)), factors, 0.01 * np.random.default_rng(0).normal(size=(1000, 1))])
    draw = draw_from_table(codes, factors)
    assert factor_vae_score(draw, SIZES, codes, train=300, test=300).test > 0.99
    assert factor_vae_score(draw, SIZES, codes, train=300, test=300, least_deviation=0.05).test > 0.99
    assert factor_vae_score(draw, SIZES, codes, train=300, test=300, least_deviation=9).test == 0


@pytest.mark.parametrize("source", ["table", "encoder"])
def test_codes_of_small_whole_numbers_do_not_wrap_around(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = some_factors(2000, SIZES)
    small = (10 * factors).astype(np.uint8)
    if source == "table":
        draws = [draw_from_table(codes, factors) for codes in (small, small.astype(float))]
        assert draws[0](0, factors[:5, 0], np.random.default_rng(0)).dtype == np.float64
    else:
        draws = [draw_from_encoder(lambda v, kind=kind: (10 * v).astype(kind), SIZES) for kind in (np.uint8, float)]
    points = []

    class Kept(LogisticRegression):
        """Keeps what it is fitted on; wrapped differences could be told apart as well."""

        def fit(self, X, y):
            points.append(X)
            return super().fit(X, y)

    # unscaled, as they come
    monkeypatch.setattr(fixed, "make_pipeline", lambda _, classifier: classifier)
    monkeypatch.setattr(fixed, "LogisticRegression", Kept)
    assert len({beta_vae_score(draw, SIZES, train=60, test=60) for draw in draws}) == 1
    np.testing.assert_array_equal(points[0], points[1])
    assert points[0].max() <= 10 * max(SIZES)


def test_beta_vae_score_does_not_depend_on_the_latents_units() -> None:
    factors = some_factors(2000, SIZES)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    codes = factors @ rotation
    plain = beta_vae_score(draw_from_table(codes, factors), SIZES, train=600, test=600)
    assert plain.test > 0.8
    for units in ([1e-4, 1e-4, 1e-4], [1e-4, 1.0, 1e4]):
        scaled = beta_vae_score(draw_from_table(codes * units, factors), SIZES, train=600, test=600)
        assert scaled == pytest.approx(plain, abs=0.01)


def test_bfloat16_codes_and_codes_of_wide_range_are_binned() -> None:
    factors = some_factors(400, (4, 3))
    codes = torch.tensor(factors).bfloat16()
    assert mig_of(*mutual_information(codes, factors)) == mig_of(*mutual_information(factors, factors))
    # of float16 the range itself overflows
    wide = np.array([[-6e4], [0.0], [6e4]], dtype=np.float16)
    assert binned(wide)[:, 0].tolist() == [0, 10, 19]


def test_an_encoder_of_factors_draws_what_a_table_draws() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(4, size=500)
    factors = some_factors(5000, SIZES)
    for draw in (draw_from_encoder(lambda v: torch.tensor(v).float(), SIZES), draw_from_table(factors, factors)):
        rows = draw(1, values, rng)
        assert (rows[:, 1] == values).all()
        others = np.bincount(rows[:, 2].astype(int), minlength=5) / 500
        np.testing.assert_allclose(others, 1 / 5, atol=0.08)
    with pytest.raises(ValueError, match=r"no sample of the table has the values \[4\]"):
        draw_from_table(factors, factors)(1, np.array([0, 4]), rng)


def test_the_same_seed_gives_the_same_scores() -> None:
    factors = some_factors(300, SIZES)
    codes = rotated(factors)
    draw = draw_from_table(codes, factors)
    for make in (
        lambda seed: factor_vae_score(draw, SIZES, codes, train=200, test=200, seed=seed),
        lambda seed: disentanglement(codes, factors, trees="extra", seed=seed)[:6],
    ):
        assert make(3) == make(3)
        assert make(3) != make(4)


def test_split_shares_out_few_samples_and_refuses_none() -> None:
    fitted, held = split(30, 2000, 1000, seed=0)
    assert (len(fitted), len(held)) == (20, 10)
    assert len(np.union1d(fitted, held)) == 30
    assert [len(side) for side in split(9000, 2000, 1000, seed=0)] == [2000, 1000]
    with pytest.raises(ValueError, match="nothing to hold out"):
        split(1, 2000, 1000, seed=0)
