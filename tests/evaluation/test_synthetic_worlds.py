"""Synthetic worlds against their stated probabilities: rates, trees, exclusive siblings, correlation, noise, purity."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sae.config import ConfigError
from sae.evaluation.synthetic.sampling import Sample, SyntheticData, make_directions, unit
from sae.evaluation.synthetic.worlds import WORLDS, World

TOKENS = 30_000


def fired(sample: Sample) -> torch.Tensor:
    return sample.codes.to_dense() > 0


def largest_cosine(directions: torch.Tensor) -> float:
    return (directions @ directions.T).fill_diagonal_(0).abs().max().item()


@pytest.mark.parametrize("name", WORLDS)
def test_features_fire_as_often_as_the_world_states(name: str) -> None:
    data = SyntheticData(WORLDS[name], seed=0)
    assert data.rates.sum().item() == pytest.approx(data.world.l0, rel=1e-12), "the rates add up to the stated L0"
    sample = data.sample(TOKENS, 0)
    counts = torch.bincount(sample.codes.indices, minlength=data.world.features)
    deviations = (counts / TOKENS - data.rates).abs() / (data.rates * (1 - data.rates) / TOKENS).sqrt()
    assert deviations.max() < 5, "in standard errors; one feature in 1.7 million lies further out by chance"
    count = sample.codes.l0().double()
    assert count.mean().item() == pytest.approx(data.world.l0, abs=max(1e-9, 5 * count.std().item() / TOKENS**0.5))


def test_zipf_rates_follow_the_exponent_below_the_cap() -> None:
    world = World(features=100, dim=8, l0=3.0, zipf=1.2, max_rate=0.3)
    rates = world.rates()
    capped = sum(rate == 0.3 for rate in rates)
    assert 1 < capped < 10
    free = rates[capped:]
    for place, rate in enumerate(free):
        assert rate / free[0] == pytest.approx(((place + capped + 1) / (capped + 1)) ** -1.2)
    assert sum(rates) == pytest.approx(3.0)
    assert free[0] <= 0.3


def test_l0_within_a_narrower_dictionary_counts_its_features_alone() -> None:
    world = WORLDS["deep"]
    data = SyntheticData(world, seed=0)
    kept = data.rates.topk(170).indices
    measured = fired(data.sample(5000, 0))[:, kept].sum(1).double().mean().item()
    assert world.l0_within(170) == pytest.approx(measured, abs=0.15)
    assert world.l0_within(680) == pytest.approx(world.l0)


def test_an_exact_world_fires_the_same_number_in_every_token() -> None:
    sample = SyntheticData(World(features=20, dim=8, l0=3, exact=True), seed=1).sample(500, 0)
    assert sample.codes.l0().tolist() == [3] * 500


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_children_fire_only_with_their_parent_and_siblings_never_together(depth: int) -> None:
    size = sum(3**level for level in range(depth + 1))
    world = World(features=5 * size, dim=16, l0=2.0, zipf=0.7, branching=3, depth=depth, child_rate=0.8)
    data = SyntheticData(world, seed=0)
    active = fired(data.sample(5000, 0))
    children = (data.parents >= 0).nonzero().squeeze(1)
    assert len(children) == 5 * (size - 1)
    assert active[:, children].any()
    assert not (active[:, children] & ~active[:, data.parents[children]]).any()
    for node in range(5 * size):
        siblings = (data.parents == node).nonzero().squeeze(1)
        assert len(siblings) in (0, 3)
        assert active[:, siblings].sum(1).max() <= 1 if len(siblings) else True


def test_a_childs_rate_is_its_parents_times_its_part_of_the_split() -> None:
    world = World(features=26, dim=8, l0=1.0, zipf=1.0, branching=3, depth=2, child_rate=0.6)
    rates, parents = world.rates(), world.parents()
    weights = [1, 1 / 2, 1 / 3]
    for node in range(2, 26):
        place = [n for n in range(26) if parents[n] == parents[node]].index(node)
        assert rates[node] == pytest.approx(rates[parents[node]] * 0.6 * weights[place] / sum(weights))


def test_correlation_keeps_the_rates_and_has_the_stated_strength() -> None:
    """At rate 1/2 two features fire together in 1/4 + asin(r)/(2π) of the tokens (Sheppard 1899)."""
    world = World(features=12, dim=16, l0=5.988, max_rate=0.4999, correlation=0.7, rank=2)
    data = SyntheticData(world, seed=3)
    active = fired(data.sample(TOKENS, 0)).double()
    assert active.mean(0).tolist() == pytest.approx([0.499] * 12, abs=0.015)
    r = data._factors @ data._factors.T
    assert r.diagonal().tolist() == pytest.approx([0.7] * 12)
    together = active.T @ active / TOKENS
    pairs = torch.triu_indices(12, 12, offset=1)
    expected = 0.25 + torch.asin(r) / (2 * math.pi)
    assert (together - expected)[pairs[0], pairs[1]].abs().max() < 0.016
    assert expected[pairs[0], pairs[1]].max() > 0.33, "the factors make some pairs fire together far more often"
    assert expected[pairs[0], pairs[1]].min() < 0.17


def test_activations_are_the_codes_times_the_features_plus_bias_and_noise() -> None:
    world = World(features=40, dim=16, l0=3.0, bias=2.0)
    data = SyntheticData(world, seed=0)
    x, codes, _ = data.sample(300, 4)
    assert torch.allclose(x, codes.to_dense() @ data.features + data.bias, atol=1e-5)
    assert data.bias.norm().item() == pytest.approx(2.0)
    noisy = SyntheticData(replace(world, noise=0.3), seed=0)
    x, codes, _ = noisy.sample(4000, 4)
    left = x - codes.to_dense() @ noisy.features - noisy.bias
    assert left.std().item() == pytest.approx(0.3, rel=0.02)
    assert left.mean().item() == pytest.approx(0, abs=0.01)


def test_magnitudes_are_positive_with_the_stated_mean() -> None:
    codes = SyntheticData(World(features=40, dim=16, l0=5.0, mean=2.0, std=0.3), seed=0).sample(4000, 0).codes
    assert codes.values.mean().item() == pytest.approx(2.0, abs=0.02)
    assert codes.values.std().item() == pytest.approx(0.3, abs=0.02)
    folded = SyntheticData(World(features=40, dim=16, l0=5.0, mean=0.0, std=1.0), seed=0).sample(4000, 0).codes
    assert (folded.values > 0).all()
    assert folded.values.mean().item() == pytest.approx((2 / math.pi) ** 0.5, abs=0.03), "of a half normal"


def test_directions_have_unit_length_and_spread_ones_stay_apart() -> None:
    few = SyntheticData(World(features=12, dim=16, l0=1.0, directions="spread"), seed=0).features
    assert torch.allclose(few @ few.T, torch.eye(12), atol=1e-6), "orthonormal where they fit"
    many = World(features=64, dim=32, l0=1.0)
    random = make_directions(many, torch.Generator().manual_seed(0))
    spread = make_directions(replace(many, directions="spread"), torch.Generator().manual_seed(0))
    assert torch.allclose(spread.norm(dim=1), torch.ones(64), atol=1e-6)
    packing = ((64 - 32) / (32 * 63)) ** 0.5  # Welch 1974: no 64 directions have a smaller largest cosine
    assert packing < largest_cosine(spread) < 1.5 * packing
    assert largest_cosine(random) > 3 * packing


def test_a_batch_depends_on_seed_number_and_part_alone() -> None:
    world = WORLDS["superposed"]
    one, other = SyntheticData(world, seed=0), SyntheticData(world, seed=0)
    other.sample(100, 3)
    assert torch.equal(one.features, other.features)
    first, again = one.sample(200, 7), other.sample(200, 7)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.codes.indices, again.codes.indices)
    different = [
        one.sample(200, 8),
        one.sample(200, 7, heldout=True),
        SyntheticData(world, seed=1).sample(200, 7),
    ]
    for sample in different:
        assert not (sample.x[:, None] == first.x[None]).all(2).any(), "no token is drawn twice"


def test_large_samples_are_drawn_in_parts_that_fit_together() -> None:
    data = SyntheticData(WORLDS["superposed"], seed=0)
    x, codes, _ = data.sample(20_000, 0)
    assert x.shape == (20_000, 64)
    assert codes.tokens == 20_000
    rows = torch.tensor([0, 8191, 8192, 16_384, 19_999])
    assert torch.allclose(x[rows], codes.to_dense()[rows] @ data.features, atol=1e-5)
    parts = list(data.heldout(20_000))
    assert [len(part.x) for part in parts] == [8192, 8192, 3616]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features 0: expected at least 1"),
        ({"l0": 4.5}, "l0 4.5: expected more than 0 and less than 4"),
        ({"branching": 2}, r"depth 0: expected levels and branching \(2\) together"),
        ({"branching": 2, "depth": 1}, "child_rate 0.0: expected more than 0 with children"),
        ({"branching": 2, "depth": 1, "child_rate": 0.5}, "features 8: expected a multiple of 3"),
        ({"correlation": 0.5}, "rank 0: expected at least 1 with a correlation"),
        ({"mean": 0.0, "std": 0.0}, "std 0.0: expected more than 0 where mean is 0"),
        ({"exact": True, "l0": 1.5}, "exact True: expected a whole l0"),
        ({"directions": "orthogonal"}, "directions orthogonal: expected random or spread"),
    ],
)
def test_impossible_worlds_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        World(**{"features": 8, "dim": 4, "l0": 1.0, **settings})


def test_unit_keeps_directions() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert torch.allclose(unit(vectors), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
