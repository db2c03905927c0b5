"""Collection: one pass in any order holds exactly what the definitions give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute import Corpus, assert_same, csr, expected, make_corpus, rectangular, window_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.features.store import collection as collection_module
from sae.features.store import keys, windows
from sae.features.store.buffers import Buffer
from sae.features.store.collection import Collection
from sae.features.store.documents import Tokens
from sae.features.store.keys import FeatureError
from sae.features.store.statistics import Statistics, edges
from sae_kernels import SparseCodes


def collected(corpus: Corpus, batches: list[list[np.ndarray]], seed: int = 3, form=rectangular) -> Collection:
    """A collection over batches, each a list of segments' rows."""
    collection = Collection(corpus.codes.shape[1], seed)
    for batch in batches:
        rows = np.concatenate(batch)
        collection.add(form(corpus.codes[rows]), corpus.tokens(rows))
    collection.finish()
    return collection


def cut(items: list, sizes: list[int]) -> list[list]:
    batches, begin = [], 0
    while begin < len(items):
        size = sizes[len(batches) % len(sizes)]
        batches.append(items[begin : begin + size])
        begin += size
    return batches


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(0)


def test_one_pass_gives_what_the_definitions_give(corpus: Corpus) -> None:
    collection = collected(corpus, [corpus.segments()])
    for latent in range(corpus.codes.shape[1]):
        wanted = expected(corpus, latent, seed=3)
        statistics = collection.statistics
        assert statistics.count[latent] == wanted.count
        assert statistics.sum()[latent] == wanted.sum
        assert statistics.sum_of_squares()[latent] == wanted.squares
        bins = statistics.histogram[latent]
        assert {b: int(bins[b]) for b in bins.nonzero().flatten().tolist()} == wanted.histogram
        for name, buffer in collection.buffers.items():
            events = buffer.events()
            own = events.latent == latent
            found = list(
                zip(
                    events.value[own].tolist(),
                    keys.document_of(events.place[own]).tolist(),
                    keys.position_of(events.place[own]).tolist(),
                    strict=True,
                )
            )
            assert found == wanted.events[name], name


def test_windows_hold_the_latents_own_activations_around_the_event(corpus: Corpus) -> None:
    collection = collected(corpus, [corpus.segments()])
    checked = 0
    for buffer in collection.buffers.values():
        latent, place, value, window = buffer.events()
        around = windows.decode(window, value).numpy()
        for i in range(0, len(latent), 17):
            document, position = int(keys.document_of(place[i])), int(keys.position_of(place[i]))
            wanted = window_of(corpus, int(latent[i]), document, position)
            assert around[i, windows.BACK] == wanted[windows.BACK] == value[i]
            np.testing.assert_array_equal(around[i] > 0, wanted > 0)
            # the scale is at most a quarter above the largest value, and a code is a 255th of it
            np.testing.assert_allclose(around[i], wanted, atol=wanted.max() * 1.25 / 255)
            checked += 1
    assert checked > 30


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_order_batching_and_sharding_gives_exactly_the_same(data: st.DataObject) -> None:
    corpus = make_corpus(data.draw(st.integers(0, 3)), documents=20, width=4)
    whole = collected(corpus, [corpus.segments()])
    segments = data.draw(st.permutations(corpus.segments()))
    # rows of a batch may come in any order too
    shuffle = np.random.default_rng(data.draw(st.integers(0, 1000)))
    segments = [shuffle.permutation(rows) for rows in segments]
    shards = cut(segments, [data.draw(st.integers(1, len(segments)))])
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    form = data.draw(st.sampled_from([rectangular, csr]))
    parts = [collected(corpus, cut(shard, sizes), form=form) for shard in shards]
    while len(parts) > 1:  # merged in any tree
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i].merge(parts.pop(i + 1))
    parts[0].finish()
    assert_same(whole, parts[0])


def test_batches_are_split_and_joined_without_a_trace(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collected(corpus, [corpus.segments()])
    for flush in (1, 100):
        monkeypatch.setattr(collection_module, "FLUSH", flush)
        assert_same(whole, collected(corpus, cut(corpus.segments(), [3])))


def test_merging_is_associative_and_commutes(corpus: Corpus) -> None:
    thirds = cut(corpus.segments(), [len(corpus.segments()) // 3 + 1])

    def parts() -> list[Collection]:
        return [collected(corpus, [third]) for third in thirds]

    a, b, c = parts()
    a.merge(b)
    a.merge(c)
    d, e, f = parts()
    f.merge(e)
    f.merge(d)
    g, h, i = parts()
    h.merge(i)
    g.merge(h)
    for collection in (a, f, g):
        collection.finish()
    assert_same(a, f)
    assert_same(a, g)


def test_another_seed_keeps_other_random_examples_and_the_same_strongest(corpus: Corpus) -> None:
    one, two = (collected(corpus, [corpus.segments()], seed=seed) for seed in (0, 1))
    assert torch.equal(one.buffers["top"].events().place, two.buffers["top"].events().place)
    for name in ("uniform", "weighted"):
        assert not torch.equal(one.buffers[name].events().place, two.buffers[name].events().place)


def test_the_random_key_is_uniform_and_differs_between_neighbours() -> None:
    document = torch.arange(400).repeat_interleave(250)
    position = torch.arange(250).repeat(400)
    for seed in (0, 1):
        order = keys.order(keys.pack(document, position), seed)
        u = keys.uniform(order).numpy()
        assert order.unique().numel() == order.numel()
        assert u.min() > 0
        assert u.max() <= 1
        counts = np.histogram(u, 50, (0, 1))[0]
        # chi-squared with 49 degrees of freedom: mean 49, standard deviation 9.9
        assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 6 * 9.9
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.02
    other = keys.uniform(keys.order(keys.pack(document, position), 1)).numpy()
    assert abs(np.corrcoef(keys.uniform(keys.order(keys.pack(document, position), 0)).numpy(), other)[0, 1]) < 0.02


def test_the_largest_document_and_position_have_a_place_and_larger_ones_are_refused() -> None:
    document, position = torch.tensor([(1 << 39) - 1]), torch.tensor([(1 << 24) - 1])
    place = keys.pack(document, position)
    assert (keys.document_of(place), keys.position_of(place)) == (document, position)
    with pytest.raises(FeatureError, match="position"):
        keys.pack(document, position + 1)
    with pytest.raises(FeatureError, match="document"):
        keys.pack(torch.tensor([-1]), position)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(2.0**-60, 2.0**63, width=32), min_size=1, max_size=60), st.randoms())
def test_sums_do_not_depend_on_the_order_and_are_exact(values: list[float], random) -> None:
    def sums(listed: list[float], at_once: int) -> Statistics:
        statistics = Statistics(2)
        for begin in range(0, len(listed), at_once):
            part = torch.tensor(listed[begin : begin + at_once], dtype=torch.float32)
            statistics.add(torch.ones(len(part), dtype=torch.int64), part)
        statistics.carry()
        return statistics

    shuffled = list(values)
    random.shuffle(shuffled)
    a, b = sums(values, 1000), sums(shuffled, 7)
    assert torch.equal(a.sums, b.sums)
    assert torch.equal(a.squares, b.squares)
    # each value is cut at 2^-64, and the sum is rounded when it is read
    exact = float(np.sum(np.array(values, np.longdouble)))
    assert a.sum()[1] == pytest.approx(exact, rel=1e-14, abs=60 * 2.0**-64)
    assert a.sum()[0] == 0


def test_histogram_bins_are_half_octaves_and_the_ends_take_what_lies_outside() -> None:
    low = edges()
    np.testing.assert_allclose(low[1::2] / low[::2], 1.5)
    np.testing.assert_allclose(low[2::2] / low[:-2:2], 2)
    statistics = Statistics(1)
    values = torch.tensor([1.0, 1.4999999, 1.5, 1.9999999, 2.0, 1e-30, 1e18])
    statistics.add(torch.zeros(len(values), dtype=torch.int64), values)
    counts = statistics.histogram[0].numpy()
    one = int(np.flatnonzero(low == 1)[0])
    assert counts[one : one + 3].tolist() == [2, 2, 1]
    assert (counts[0], counts[-1]) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32)), min_size=33, max_size=33),
    st.floats(2.0**-10, 2.0**10, width=32),
)
def test_windows_keep_the_event_exactly_and_its_neighbours_to_a_255th(around: list[float], value: float) -> None:
    wanted = torch.tensor([around], dtype=torch.float32)
    wanted[0, windows.BACK] = value
    got = windows.decode(windows.encode(wanted, wanted[:, windows.BACK]), wanted[:, windows.BACK])
    assert got[0, windows.BACK] == wanted[0, windows.BACK]
    assert torch.equal(got > 0, wanted > 0)
    assert (got - wanted).abs().max() <= wanted.max() * 1.25 / 255 * 1.001


def test_a_document_gives_one_event_to_the_strongest() -> None:
    n = 50
    tokens = Tokens(torch.arange(n), torch.arange(n) // 25, torch.arange(n) % 25, torch.zeros(n, dtype=torch.int64))
    codes = SparseCodes(torch.arange(1.0, n + 1).unsqueeze(1), torch.zeros(n, 1, dtype=torch.int64), 1)
    collection = Collection(1, 0)
    collection.add(codes, tokens)
    collection.finish()
    events = collection.buffers["top"].events()
    assert events.value.tolist() == [50, 25]
    assert keys.document_of(events.place).tolist() == [1, 0]


def test_weights_gone_wrong_are_refused_and_so_is_a_place_twice() -> None:
    tokens = Tokens(*(torch.zeros(2, dtype=torch.int64) for _ in range(4)))
    indices = torch.zeros(2, 1, dtype=torch.int64)
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(FeatureError, match="not finite"):
            Collection(1, 0).add(SparseCodes(torch.tensor([[1.0], [bad]]), indices, 1), tokens)
    with pytest.raises(FeatureError, match="2 tokens over 1 latents"):
        Collection(1, 0).add(SparseCodes(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), 1), tokens)
    collection = Collection(1, 0)
    collection.add(SparseCodes(torch.ones(2, 1), indices, 1), tokens)
    with pytest.raises(FeatureError, match="same document and position"):
        collection.finish()


def test_tokens_that_fire_nothing_and_empty_batches_are_counted_and_harmless(corpus: Corpus) -> None:
    collection = Collection(3, 0)
    rows = corpus.segments()[0]
    collection.add(csr(np.zeros((len(rows), 3), np.float32)), corpus.tokens(rows))
    nothing = Tokens(*(torch.zeros(0, dtype=torch.int64) for _ in range(4)))
    collection.add(csr(np.zeros((0, 3), np.float32)), nothing)
    collection.finish()
    assert collection.tokens == len(rows)
    assert int(collection.statistics.count.sum()) == len(collection.documents) == 0


def test_half_precision_codes_are_collected_as_their_own_values() -> None:
    values = torch.tensor([[1.001], [3.0]], dtype=torch.bfloat16)
    tokens = Tokens(
        torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.zeros(2, dtype=torch.int64)
    )
    collection = Collection(1, 0)
    collection.add(SparseCodes(values, torch.zeros(2, 1, dtype=torch.int64), 1), tokens)
    collection.finish()
    assert collection.statistics.sum()[0] == values.float().sum().item()


def test_a_full_buffer_drops_only_what_is_worse() -> None:
    buffer = Buffer("top", 1, 0)
    place = keys.pack(torch.arange(40), torch.zeros(40, dtype=torch.int64))
    zeros = torch.zeros(40, dtype=torch.int64)
    # 40 documents with one value: the 32 first documents win
    chosen = buffer.candidates(zeros, place, torch.ones(40))
    assert sorted(chosen.tolist()) == list(range(32))
