"""Measures of meaning on arrays whose answer is known, and against slow versions that follow the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from sae.evaluation.semantic import absorption, attributes, intervals, removal
from sae.evaluation.semantic.bases import Basis, best, chosen_by_chance, of_autoencoder, shuffled
from sae.evaluation.semantic.intervals import Resamples
from sae.evaluation.semantic.probes import fit_probe
from sae.evaluation.semantic.prompts import Prompt
from sae.evaluation.semantic.reading import TextRows, pooled
from sae.evaluation.semantic.results import CAVEATS, SAE, Row
from sae.evaluation.semantic.sparse_probing import FULL, Labelled, probing_rows
from sae.evaluation.synthetic.sampling import SyntheticData
from sae.evaluation.synthetic.worlds import WORLDS
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import TopK
from sae_kernels import SparseCodes

DRAW = np.random.default_rng(0)
START = DRAW.bit_generator.state


@pytest.fixture(autouse=True)
def same_draws_in_every_test() -> None:
    DRAW.bit_generator.state = START


def basis(name: str, atoms: np.ndarray, codes: np.ndarray | None = None) -> Basis:
    return Basis(name, lambda inputs, targets: codes, atoms.astype(np.float32))


def labelled(labels: np.ndarray, activations: np.ndarray, codes: dict[str, np.ndarray], other=None) -> Labelled:
    training = np.arange(len(labels)) % 2 == 0
    return Labelled("task", labels, training, activations, codes, other)


def row(rows: list[Row], **wanted: object) -> Row:
    (only,) = [r for r in rows if all(getattr(r, name) == value for name, value in wanted.items())]
    return only


def test_auroc_and_balanced_accuracy_are_those_of_scikit_learn_with_weights_and_ties() -> None:
    scores = DRAW.integers(-3, 4, 60).astype(float)
    truth = DRAW.random(60) < 0.3
    weights = np.vstack([np.ones(60), DRAW.integers(0, 4, (5, 60))]).astype(float)
    for given, auroc, accuracy in zip(
        weights,
        intervals.auroc(scores, truth, weights),
        intervals.balanced_accuracy(scores, truth, weights),
        strict=True,
    ):
        assert auroc == pytest.approx(roc_auc_score(truth, scores, sample_weight=given))
        assert accuracy == pytest.approx(balanced_accuracy_score(truth, scores > 0, sample_weight=given))
    says = scores > 1
    assert absorption.weighted_f1(says, truth, weights)[1] == pytest.approx(
        f1_score(truth, says, sample_weight=weights[1])
    )


def test_intervals_are_those_of_resampled_units_and_differences_are_paired() -> None:
    values = DRAW.normal(size=200)
    resamples = Resamples.of(200, count=500, seed=1)
    rows = intervals.compared(
        "probing.accuracy",
        "task",
        1,
        {SAE: lambda w: w @ values / w.sum(1), "control": lambda w: w @ (values + 1) / w.sum(1)},
        resamples,
    )
    mine, control = rows
    standard_error = values.std() / 200**0.5
    assert mine.value == pytest.approx(values.mean())
    assert mine.low is not None
    assert mine.high is not None
    assert mine.high - mine.low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert (control.difference, control.difference_low, control.difference_high) == pytest.approx((1, 1, 1))
    assert mine.difference is None


def test_an_interval_is_unknown_where_resamples_often_have_no_value() -> None:
    values = np.array([1.0, np.nan, np.nan, 1.0])
    assert intervals.bounds(values) == (None, None)
    assert intervals.bounds(np.r_[np.ones(99), np.nan]) == (1, 1)


def test_a_probe_scores_rows_like_scikit_learn_on_standardised_columns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = DRAW.normal(size=(80, 5)) * [1, 10, 0.1, 1, 1] + 3
    x[:, 4] = 3
    truth = x[:, 0] + DRAW.normal(size=80) > 3
    scaled = StandardScaler().fit_transform(x)
    expected = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaled, truth)
    assert fit_probe(x, truth).scores(x) == pytest.approx(expected.decision_function(scaled), abs=1e-6)


def test_without_columns_a_probe_never_tells_the_class() -> None:
    assert not (fit_probe(np.empty((4, 0)), np.array([True, False, True, False])).scores(np.empty((4, 0))) > 0).any()


def test_one_latent_that_is_the_class_is_found_and_beats_channels_that_hide_it() -> None:
    labels = np.where(np.arange(80) % 4 < 2, "a", "b")
    truth = labels == "a"
    codes = DRAW.random((80, 30)).astype(np.float32)
    codes[:, 17] = truth * 2.0
    # the class is spread over all channels, each of which is mostly noise
    raw = (np.outer(truth * 2.0, np.full(40, 40**-0.5)) + 0.5 * DRAW.normal(size=(80, 40))).astype(np.float32)
    subjects = [basis(SAE, np.eye(30)), chosen_by_chance(basis(SAE, np.eye(30))), basis("raw channels", np.eye(40))]
    data = labelled(labels, raw, {SAE: codes, "random latents": codes, "raw channels": raw})
    rows = probing_rows(data, subjects, [1], Resamples.of(40, count=200, seed=0), seed=0)
    assert row(rows, measure="probing.accuracy", subject=SAE).value == 1
    assert row(rows, measure="probing.auroc", subject=FULL).value > 0.9
    for subject in ("raw channels", "random latents"):
        control = row(rows, measure="probing.auroc", subject=subject)
        assert control.difference_high is not None
        assert control.difference_high < 0
    assert {r.n for r in rows} == {40}
    assert {r.caveat for r in rows} == {CAVEATS["probing"]}


def test_latents_are_chosen_on_training_texts_alone() -> None:
    labels = np.array(["a", "b"] * 20).repeat(2)
    codes = np.zeros((80, 2), dtype=np.float32)
    training = np.arange(80) % 2 == 0
    codes[:, 0] = 0.1 * (labels == "a")
    codes[~training, 1] = 5.0 * (labels == "a")[~training]
    data = labelled(labels, codes, {SAE: codes})
    rows = probing_rows(data, [basis(SAE, np.eye(2))], [1], Resamples.of(40, count=10, seed=0), seed=0)
    assert row(rows, measure="probing.accuracy", subject=SAE).value == 1
    # held-out texts alone have the second latent; were it chosen, its probe would know nothing
    assert best(np.array([0.1, 0.0]), 1, basis(SAE, np.eye(2)), np.array([True, False]), 0).tolist() == [0]


def test_best_takes_the_largest_scores_and_chance_takes_latents_that_fire() -> None:
    scores, fires = np.array([0.0, 3.0, 1.0, 3.0]), np.array([True, False, True, True])
    subject = basis(SAE, np.eye(4))
    assert best(scores, 3, subject, fires, 0).tolist() == [1, 3, 2]
    assert best(scores, 4, subject, fires, 0).tolist() == [1, 3, 2]
    assert set(best(scores, 4, chosen_by_chance(subject), fires, 0).tolist()) == {0, 2, 3}


def test_pooled_codes_are_means_over_each_texts_tokens() -> None:
    x = torch.randn(9, 4)
    rows = TextRows(x, x, np.array([0, 2, 3, 9]))
    subject = Basis("x", lambda inputs, targets: targets.numpy(), np.eye(4, dtype=np.float32))
    expected = torch.stack([x[0:2].mean(0), x[2:3].mean(0), x[3:9].mean(0)])
    torch.testing.assert_close(torch.from_numpy(pooled(subject, rows)), expected)
    some = rows.of(np.array([2, 0]))
    assert some.starts.tolist() == [0, 6, 8]
    torch.testing.assert_close(some.inputs, torch.cat([x[3:9], x[0:2]]))
    assert some.targets is some.inputs


def test_tpp_is_the_sum_of_its_definition() -> None:
    clean, after = DRAW.random(4), DRAW.random((4, 4))
    expected = np.mean(
        [(clean[i] - after[i, i]) - np.mean([clean[j] - after[i, j] for j in range(4) if j != i]) for i in range(4)]
    )
    assert removal.tpp(clean[:, None], after[:, :, None])[0] == pytest.approx(expected)
    assert removal.tpp(clean[:, None], after[:, :, None], intended_only=True)[0] == pytest.approx(
        np.mean([clean[i] - after[i, i] for i in range(4)])
    )


def test_where_each_class_has_a_latent_of_its_own_tpp_is_a_half() -> None:
    # ablating the class's latent leaves its probe at chance and all others as they were
    labels = np.array(["a", "b", "c", "d"] * 40)
    codes = np.stack([labels == name for name in "abcd"], axis=1).astype(np.float32) * 3
    atoms = np.linalg.qr(DRAW.normal(size=(8, 8)))[0][:4].astype(np.float32)
    data = labelled(labels.repeat(1), codes @ atoms, {SAE: codes, "shuffled atoms": codes})
    data = data._replace(training=np.arange(160) < 80)
    subjects = [basis(SAE, atoms), shuffled(basis(SAE, atoms))]
    rows = removal.tpp_rows(data, subjects, [1], Resamples.of(80, count=50, seed=0), seed=0)
    assert row(rows, measure="tpp.intended", subject=SAE).value == pytest.approx(0.5, abs=0.02)
    assert row(rows, measure="tpp.score", subject=SAE).value == pytest.approx(0.5, abs=0.02)


def test_scr_is_one_where_the_latents_of_the_spurious_attribute_are_ablated() -> None:
    # a latent for each value of two attributes, those of the second one three times as strong
    labels, other = np.array(["a", "b"] * 200), np.array(["x", "x", "y", "y"] * 100)
    codes = np.stack([labels == "a", labels == "b", 3.0 * (other == "x"), 3.0 * (other == "y")], axis=1)
    codes = codes.astype(np.float32)
    activations = codes + 0.4 * DRAW.normal(size=codes.shape).astype(np.float32)
    data = Labelled("task", labels, np.arange(400) < 200, activations, {SAE: codes, "shuffled atoms": codes}, other)
    subjects = [basis(SAE, np.eye(4)), shuffled(basis(SAE, np.eye(4)))]
    rows = removal.scr_rows(data, subjects, [2], Resamples.of(200, count=50, seed=0), seed=0)
    kept = row(rows, task="task: label kept", subject=SAE)
    assert kept.value == pytest.approx(1, abs=0.15)
    assert kept.low is not None
    assert kept.low > 0.7


def test_scr_is_what_is_regained_and_undefined_where_nothing_is_lost() -> None:
    biased, clean = np.array([0.5, 0.5, 0.9]), np.array([0.9, 0.9, 0.9])
    assert removal.scr(biased, clean, clean)[0] == 1
    assert removal.scr(biased, biased, clean)[1] == 0
    assert np.isnan(removal.scr(biased, clean, clean)[2])


def test_what_is_ablated_leaves_the_reconstruction_error_where_it_was() -> None:
    x, z, atoms = DRAW.normal(size=(5, 4)), DRAW.random((5, 6)), DRAW.normal(size=(6, 4))
    without = np.array(z)
    without[:, [1, 4]] = 0
    assert removal.ablated(x, z, atoms, np.array([1, 4])) == pytest.approx(without @ atoms + (x - z @ atoms))


def slow_absorbed(t: np.ndarray, z: np.ndarray, atoms: np.ndarray, w: np.ndarray, main: list[int]) -> tuple:
    """One word at a time, as the definition is written."""
    w = w / np.linalg.norm(w)
    fractions, full = [], []
    for word, code in zip(t, z, strict=True):
        a = float(word @ w)
        p = [float(code[j] * (atoms[j] @ w)) for j in range(len(atoms))]
        cosine = [float(atoms[j] @ w / np.linalg.norm(atoms[j])) for j in range(len(atoms))]
        m = sum(p[j] for j in main)
        could = sorted(p[j] for j in range(len(p)) if j not in main and cosine[j] >= 0.1 and p[j] > 0)[-3:]
        if a <= 0 or m >= a or sum(could) < 0.4 * a:
            fractions.append(0.0)
        elif m <= 0:
            fractions.append(1.0)
        else:
            share = min(sum(could), a - m)
            fractions.append(share / (share + m))
        top = int(np.argmax(p))
        full.append(all(code[j] == 0 for j in main) and cosine[top] >= 0.025 and a > 0 and p[top] >= 0.4 * a)
    return fractions, full


def test_absorption_of_random_words_is_that_of_the_slow_version() -> None:
    t = DRAW.normal(size=(400, 6)) + 0.5
    z = DRAW.random((400, 20)) * (DRAW.random((400, 20)) < 0.2)
    atoms, w = DRAW.normal(size=(20, 6)), DRAW.normal(size=6)
    for main in ([3], [0, 7], []):
        mine = absorption.absorbed(t, z, atoms, w, np.array(main, dtype=np.int64))
        fractions, full = slow_absorbed(t, z, atoms, w, main)
        assert mine.fraction == pytest.approx(np.array(fractions))
        assert mine.full.tolist() == full
        assert 0 < np.mean(full) < 1
        assert len({0.0, 1.0} & set(fractions)) > 0


def hierarchy(absorbs: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Words of a class (feature 0, "starts with e"), a third of which have a child's feature too.

    Returns:
        Activations [n, d], codes [n, 3] (parent, child, other), atoms [3, d], whether a word has the child, bool [n].
    """
    features = np.eye(6)
    of_class = np.arange(300) % 2 == 0
    child = of_class & (np.arange(300) % 3 == 0)
    true = np.stack([of_class, child, ~of_class], axis=1).astype(np.float64)
    activations = true @ features[:3]
    if not absorbs:
        return activations, true, features[:3], child
    # the parent is silent where the child fires, whose atom has both directions: the same sums with fewer latents
    codes = np.stack([of_class & ~child, child * 2**0.5, ~of_class], axis=1).astype(np.float64)
    atoms = np.stack([features[0], (features[0] + features[1]) / 2**0.5, features[2]])
    assert codes @ atoms == pytest.approx(activations)
    return activations, codes, atoms, child


@pytest.mark.parametrize("absorbs", [False, True])
def test_absorption_is_the_share_of_the_child_in_a_dictionary_that_absorbs_and_none_in_one_that_does_not(
    absorbs: bool,
) -> None:
    activations, codes, atoms, child = hierarchy(absorbs)
    truth = np.arange(300) % 2 == 0
    latents = np.array([0])
    probe = fit_probe(activations, truth)
    told = np.flatnonzero(truth & (probe.scores(activations) > 0))
    # the true direction: a probe may use the other class as well
    of = absorption.absorbed(activations[told], codes[told], atoms, np.eye(6)[0], latents)
    assert of.fraction.mean() == pytest.approx(child[told].mean() if absorbs else 0)
    assert of.full.mean() == pytest.approx(child[told].mean() if absorbs else 0)
    assert absorption.letter_latents(codes, truth)[0] == 0


def test_a_world_with_hierarchy_shows_absorption_only_where_children_took_up_their_parents() -> None:
    data = SyntheticData(WORLDS["hierarchical"], seed=0)
    sample = data.sample(1024, 0)
    true = sample.codes.to_dense().double().numpy()
    features = data.features.double().numpy()
    parents = data.parents.numpy()
    rates = (true > 0).sum(0)
    families = [(p, c) for c, p in enumerate(parents) if p >= 0 and rates[c] >= 10][:4]
    assert families
    x = true @ features
    for parent, child in families:
        both = true[:, child] > 0
        words = true[:, parent] > 0
        # as an absorbing dictionary writes it: the child's latent carries the parent, whose own latent is silent
        codes = np.array(true)
        codes[both, parent] = 0
        atoms = np.array(features)
        atoms[child] = features[child] + features[parent]
        direction = features[parent]
        clean = absorption.absorbed(x[words], true[words], features, direction, np.array([parent]))
        taken = absorption.absorbed(x[words], codes[words], atoms, direction, np.array([parent]))
        assert clean.full.mean() == 0
        assert taken.full[~both[words]].mean() == 0
        assert taken.full[both[words]].mean() > 0.6
        assert taken.fraction.mean() > clean.fraction.mean()


def test_a_letter_whose_two_latents_share_its_words_is_split_in_two() -> None:
    truth = np.arange(200) % 2 == 0
    codes = np.zeros((200, 4))
    codes[:, 2] = truth & (np.arange(200) % 4 == 0)
    codes[:, 1] = truth & (np.arange(200) % 4 != 0)
    codes[:, 0] = DRAW.random(200) * 0.01
    assert sorted(absorption.letter_latents(codes, truth).tolist()) == [1, 2]


def test_shuffled_atoms_keep_the_codes_and_every_atom() -> None:
    subject = basis(SAE, DRAW.normal(size=(50, 3)))
    control = shuffled(subject)
    assert control.encode is subject.encode
    assert (control.atoms != subject.atoms).any()
    assert np.sort(control.atoms, axis=0) == pytest.approx(np.sort(subject.atoms, axis=0))


def test_between_is_the_variance_of_group_means() -> None:
    z, values = DRAW.normal(size=(30, 4)), DRAW.integers(0, 3, 30).astype(str)
    mean = z.mean(0)
    expected = sum((z[values == v].mean(0)[None] - mean) ** 2 * (values == v).sum() for v in "012")[0] / 30
    assert attributes.between(z, values) == pytest.approx(expected)


def test_pairs_differ_in_all_attributes_and_halves_share_no_entity() -> None:
    entities = [{"a": str(i % 3), "b": str(i % 2)} for i in range(36)]
    draw = np.random.default_rng(0)
    learning, testing = attributes.halves(entities, draw)
    assert sorted([*learning, *testing]) == list(range(36))
    pairs = attributes.draw_pairs(entities, testing, draw, 10)
    assert len(pairs.base) == len(set(pairs.base.tolist())) == 10
    assert set(pairs.base.tolist()) | set(pairs.source.tolist()) <= set(testing.tolist())
    for i, j in zip(pairs.base, pairs.source, strict=True):
        assert all(entities[i][name] != entities[j][name] for name in ("a", "b"))


def answers(values: list[int]) -> Prompt:
    array = np.array(values)
    empty = torch.empty(len(array), 0)
    return Prompt(array, array, empty, empty, [], array, array)


@pytest.mark.parametrize(
    ("change", "cause", "isolation"),
    [("none", 0.0, 1.0), ("all", 1.0, 0.0), ("the attribute", 1.0, 1.0), ("nonsense", 0.0, 0.0)],
)
def test_cause_and_isolation_of_known_changes(change: str, cause: float, isolation: float) -> None:
    prompts = {"country": answers([1, 2, 3, 4]), "language": answers([11, 12, 13, 14])}
    pairs = attributes.Pairs(np.array([0, 1]), np.array([2, 3]))
    of = {name: prompt.answers[pairs.base] for name, prompt in prompts.items()}
    swapped = {name: prompt.answers[pairs.source] for name, prompt in prompts.items()}
    said = {
        "none": of,
        "all": swapped,
        "the attribute": {**of, "country": swapped["country"]},
        "nonsense": {name: np.array([77, 78]) for name in of},
    }[change]
    rows = attributes.scored("country", 3, {SAE: said}, prompts, pairs, Resamples.of(2, count=20, seed=0))
    assert row(rows, measure="attributes.cause").value == cause
    assert row(rows, measure="attributes.isolation").value == isolation
    assert row(rows, measure="attributes.score").value == (cause + isolation) / 2


def test_the_latents_that_carry_an_attribute_are_found() -> None:
    values = np.array(["a", "b", "c"] * 10)
    z = DRAW.random((30, 12)) * 0.1
    z[:, 5] = values == "a"
    z[:, 9] = values == "b"
    subject = basis(SAE, np.eye(12))
    assert set(attributes.carriers([z, z], values, np.arange(30), subject, 2, 0).tolist()) == {5, 9}


@pytest.mark.parametrize("per_token_norm", [False, True])
def test_codes_times_atoms_are_what_latents_add_to_the_reconstruction(per_token_norm: bool) -> None:
    model = Autoencoder(6, 20, TopK(4), per_token_norm=per_token_norm)
    model.initialise(torch.Generator().manual_seed(0))
    x = torch.randn(10, 6) * torch.arange(1, 11)[:, None]
    subject = of_autoencoder(model)
    codes = model.encode(x)
    silent = SparseCodes(torch.zeros_like(codes.values), codes.indices, codes.width, codes.offsets)
    added = (model.decode(codes, x) - model.decode(silent, x)).detach()
    torch.testing.assert_close(torch.from_numpy(subject.encode(x, x) @ subject.atoms), added, rtol=1e-4, atol=1e-4)
