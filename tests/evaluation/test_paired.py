"""Means over seeds and documents, paired differences, minimum detectable differences, rank ranges."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sae.evaluation import paired
from sae.evaluation.bootstrap import resample_weights


def estimate(table, *, seeds=None, resamples=2000):
    """Of a table of values [S, G]: the mean over documents, then over seeds."""
    table = np.asarray(table, dtype=float)
    seeds, groups = range(len(table)) if seeds is None else seeds, table.shape[1]
    draws = (
        table @ resample_weights(groups, resamples, 0).numpy().T / groups if groups > 1 else np.empty((len(table), 0))
    )
    return paired.over_replicates(table.mean(1).tolist(), draws, tuple(seeds), factor=1.0, groups=groups)


def of_seeds(values, seeds=None):
    """A number that no document plays a part in."""
    return estimate(np.asarray(values)[:, None], seeds=seeds)


def test_without_documents_a_paired_difference_is_the_paired_t_test():
    first, second = [0.31, 0.35, 0.29, 0.38], [0.22, 0.30, 0.27, 0.26]
    difference = paired.less(of_seeds(first), of_seeds(second))
    reference = stats.ttest_rel(first, second)
    low, high = reference.confidence_interval()
    assert difference.p_value() == pytest.approx(reference.pvalue)
    assert difference.interval()[1:] == pytest.approx((low, high))


def test_without_common_seeds_a_difference_is_welchs_t_test():
    first, second = [0.31, 0.35, 0.29, 0.38], [0.22, 0.30, 0.27]
    difference = paired.less(of_seeds(first), of_seeds(second, seeds=[7, 8, 9]))
    reference = stats.ttest_ind(first, second, equal_var=False)
    assert difference.p_value() == pytest.approx(reference.pvalue)
    assert difference.df == pytest.approx(reference.df)


def test_the_variance_of_documents_is_that_of_their_mean():
    table = np.random.default_rng(0).normal(size=(1, 400))
    part = estimate(table).uncertain().parts[0]
    assert (part.source, part.df) == ("documents", 399)
    assert part.variance == pytest.approx(table.var() / 400, rel=0.1)


def test_the_jackknife_of_a_mean_is_its_closed_form():
    table = np.random.default_rng(1).normal(size=(3, 20))
    without = (table.sum(1, keepdims=True) - table) / 19
    parts = paired.over_replicates(table.mean(1), without, (0, 1, 2), factor=19, groups=20).uncertain().parts
    assert parts[0].variance == pytest.approx(table.mean(1).var(ddof=1) / 3)
    assert parts[1].variance == pytest.approx(table.mean(0).var(ddof=1) / 20)


def test_pairs_of_seeds_share_seeds():
    pairs = [0.5, 0.7, 0.9]  # (0, 1), (0, 2), (1, 2)
    uncertain = paired.over_pairs_of_seeds(pairs, (0, 1, 2)).uncertain()
    without = np.array([0.9, 0.7, 0.5])
    assert uncertain.value == pytest.approx(0.7)
    assert uncertain.parts == (paired.Part("seeds", pytest.approx(2 / 3 * np.square(without - 0.7).sum()), 2),)
    assert math.isnan(paired.over_pairs_of_seeds([0.5], (0, 1)).uncertain().interval().low)


def test_noise_that_documents_share_cancels_in_a_difference():
    draw = np.random.default_rng(2)
    hard = 10 * draw.normal(size=100)
    first, second = (hard + shift + 0.01 * draw.normal(size=(3, 100)) for shift in (0.0, 0.1))
    difference = paired.less(estimate(second), estimate(first))
    low, high = difference.interval()[1:]
    assert 0.08 < low < high < 0.12
    assert estimate(first).uncertain().interval().high > difference.value  # each by itself is not known as well


def test_intervals_hold_the_truth_in_95_percent_where_resampled_seeds_do_not():
    draw, trials, seeds, groups = np.random.default_rng(3), 400, 3, 30
    weights = resample_weights(groups, 300, 0).numpy() / groups
    of_seeds_too = resample_weights(seeds, 300, 1).numpy() / seeds
    held = resampled_held = 0
    for _ in range(trials):
        table = draw.normal(size=(seeds, 1)) + draw.normal(size=groups) + draw.normal(size=(seeds, groups))
        low, high = estimate(table, resamples=300).uncertain().interval()[1:]
        held += low <= 0 <= high
        means = np.einsum("rs,sg,rg->r", of_seeds_too, table, weights)
        low, high = np.quantile(means, [0.025, 0.975])
        resampled_held += low <= 0 <= high
    assert held / trials > 0.92
    assert resampled_held / trials < 0.85


def test_a_true_difference_of_the_minimum_detectable_one_is_found_with_80_percent():
    draw, trials = np.random.default_rng(4), 4000
    spread = paired.Uncertain(0.0, (paired.Part("seeds", 0.02**2 / 5, 4),))
    least = spread.detectable()
    samples = draw.normal(least, 0.02, size=(trials, 5))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("df", [2, 7])
def test_the_minimum_detectable_difference_is_that_of_the_noncentral_t(df):
    shift = paired.Uncertain(0.0, (paired.Part("seeds", 1.0, df),)).detectable()
    assert stats.nct.sf(stats.t.ppf(0.975, df), df, shift) == pytest.approx(0.8, abs=2e-3)


def test_the_minimum_detectable_difference_of_many_documents_is_the_normal_one():
    spread = paired.Uncertain(0.0, (paired.Part("documents", 4.0, 10**6),))
    assert spread.detectable() == pytest.approx(2 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)), rel=1e-3)


def test_holm_is_the_closure_of_bonferroni():
    p_values = [0.011, 0.02, 0.6, 0.0004]
    places = range(len(p_values))
    every = [s for size in range(1, 5) for s in itertools.combinations(places, size)]
    closure = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in every if place in s) for place in places]
    assert paired.holm(p_values) == pytest.approx(closure)
    assert paired.holm([math.nan, 0.03])[1] == pytest.approx(0.06)


def test_ranks_are_ranges_where_the_data_do_not_tell():
    draw = np.random.default_rng(5)
    documents = draw.normal(size=200)
    means = [0.0, 0.001, 1.0, 2.0]
    variants = [estimate(documents + mean + 0.05 * draw.normal(size=(3, 200))) for mean in means]
    assert [str(ranks) for ranks in paired.rank_ranges(variants, better=-1)] == ["1-2", "1-2", "3", "4"]
    assert [str(ranks) for ranks in paired.rank_ranges(variants, better=1)] == ["3-4", "3-4", "2", "1"]


def test_equal_variants_are_ranked_wrongly_in_at_most_5_percent():
    draw, wrong = np.random.default_rng(6), 0
    for _ in range(200):
        variants = [estimate(draw.normal(size=(4, 1)) + np.zeros((4, 2)), resamples=50) for _ in range(4)]
        wrong += any(ranks != (1, 4) for ranks in paired.rank_ranges(variants, better=-1))
    assert wrong <= 20  # 5% of 200, and twice its standard error


def test_equal_numbers_differ_by_nothing():
    same = of_seeds([32.0, 32.0, 32.0])
    assert paired.less(same, same).p_value() == 1
    assert paired.less(same, same).detectable() == 0
    assert paired.rank_ranges([same, same], better=-1) == [(1, 2), (1, 2)]


def test_a_single_seed_leaves_the_documents_alone():
    table = np.random.default_rng(7).normal(size=(1, 50))
    assert [part.source for part in estimate(table).uncertain().parts] == ["documents"]
    assert math.isnan(estimate(table[:, :1]).uncertain().interval().low)
