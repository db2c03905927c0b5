"""Scores of names: known answers score what they must, hard negatives come from neighbours, scorers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from sae.features.explain.endpoint import binary_chances
from sae.features.explain.measures import agreement, correlation, separation
from sae.features.explain.questions import Answer, Measure, Name, Question
from sae.features.explain.scan import Scan, assemble
from sae.features.explain.score import Sheet, score
from sae.features.explain.scoring_pass import summary
from sae.features.explain.texts import MARKED, LatentTexts, TextSource
from sae.features.store import keys, windows

MEASURES: tuple[Measure, ...] = ("detection", "fuzzing", "simulation")
DOCUMENTS, LENGTH, WIDTH = 60, 80, 12
LATENT, NEIGHBOURS = 3, (5, 7)


def made_scan(seed: int = 0) -> tuple[Scan, np.ndarray]:
    """Documents of two segments each with sparse random codes; the scan, and all activations [n, WIDTH]."""
    draw = np.random.default_rng(seed)
    document = np.repeat(np.arange(DOCUMENTS), LENGTH)
    position = np.tile(np.arange(LENGTH), DOCUMENTS)
    place = (document << keys.POSITION_BITS) | position
    start = np.where(position < 50, 0, 50)
    dense = np.where(draw.random((len(place), WIDTH)) < 0.012, draw.gamma(2, size=(len(place), WIDTH)), 0)
    dense = dense.astype(np.float32)
    order = draw.permutation(len(place))
    row, latent = np.nonzero(dense[order])
    return assemble(place[order], start[order], row, latent, dense[order][row, latent], width=WIDTH), dense


def source_of(scan: Scan) -> TextSource:
    """Texts whose tokens are their positions."""
    store: Any = SimpleNamespace(
        tokens=lambda document: np.arange(LENGTH),
        vocabulary=SimpleNamespace(display=lambda ids, first, end: [f" {i}" for i in ids[first:end]]),
    )
    return TextSource(scan, store, lambda latent: NEIGHBOURS)


@pytest.fixture(scope="module")
def texts() -> LatentTexts:
    return source_of(made_scan()[0]).texts(LATENT, each=12, seed=0)


class Knowing:
    """Answers from the truth: `sign` 1 is right, -1 wrong, 0 says the same of all."""

    name, reads_words = "knowing", True
    questions_at_once, texts_each = 1, 12

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        answers: list[Answer] = []
        for question in questions:
            activation = question.text.activation.astype(np.float64)
            if question.measure == "simulation":
                answers.append(self.sign * activation)
            elif question.measure == "fuzzing":
                # wrong marks are on silent tokens alone
                assert question.marks is not None
                answers.append(self.sign * float(activation[question.marks].min() > 0))
            else:
                answers.append(self.sign * float(activation.max() > 0))
        return answers

    def threshold(self, name: Name) -> float:
        return 0.5 * self.sign


@pytest.mark.parametrize(("sign", "right", "correlated"), [(1, 1.0, 1.0), (-1, 0.0, -1.0), (0, 0.5, 0.0)])
def test_a_perfect_an_opposite_and_an_empty_name_score_what_they_must(
    texts: LatentTexts, sign: float, right: float, correlated: float
) -> None:
    entry = score(Sheet(LATENT, Name("a b c"), Name("other"), texts), Knowing(sign), MEASURES, seed=0)
    for against in ("random", "near", "both"):
        for measure in ("detection", "fuzzing"):
            compared = entry[measure][against]
            assert compared["value"] == compared["low"] == compared["high"] == compared["accuracy"] == right
            # the scorer ignores names, so controls score the same
            assert compared["other"] == compared["shuffled"] == right
        assert entry["simulation"][against]["value"] == pytest.approx(correlated, abs=1e-3)
    assert entry["unanswered"] == 0


def test_random_answers_score_by_chance(texts: LatentTexts) -> None:
    draw = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {measure: [] for measure in MEASURES}

    class Guessing(Knowing):
        def answer(self, questions: Sequence[Question]) -> list[Answer]:
            return [draw.random(len(q.text.tokens)) if q.measure == "simulation" else draw.random() for q in questions]

    covered = 0
    for seed in range(40):
        entry = score(Sheet(LATENT, Name("x"), None, texts), Guessing(1), MEASURES, seed=seed)
        for measure, chance in (("detection", 0.5), ("fuzzing", 0.5), ("simulation", 0.0)):
            compared = entry[measure]["near"]
            drawn[measure].append(compared["value"])
            covered += compared["low"] <= chance <= compared["high"]
    assert np.mean(drawn["detection"]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(drawn["fuzzing"]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(drawn["simulation"]) == pytest.approx(0.0, abs=0.03)
    assert covered / 120 > 0.88


def test_measures_agree_with_the_libraries() -> None:
    draw = np.random.default_rng(1)
    positive = draw.random(50) < 0.4
    # ties are common among answers
    answers = np.round(draw.random(50) + 0.3 * positive, 1)
    measured = separation(answers, positive, np.arange(50), threshold=0.75)
    assert measured is not None
    assert measured.value == pytest.approx(roc_auc_score(positive, answers))
    assert measured.accuracy == pytest.approx(balanced_accuracy_score(positive, answers > 0.75))
    true = [draw.gamma(1, size=n) for n in (4, 9, 3, 12)]
    predicted = [t + draw.normal(size=len(t)) for t in true]
    correlated = correlation(true, predicted, np.arange(4))
    assert correlated is not None
    # over all tokens together, as neuron_explainer's aggregate_scored_sequence_simulations, and not a mean over texts
    assert correlated.value == pytest.approx(np.corrcoef(np.concatenate(true), np.concatenate(predicted))[0, 1])
    first, second = np.round(draw.random(30), 1), np.round(draw.random(30), 1)
    agreed = agreement(first, second)
    assert agreed is not None
    assert agreed["value"] == pytest.approx(spearmanr(first, second).statistic)
    assert agreed["low"] < agreed["value"] < agreed["high"]
    assert agreement(np.ones(9), first[:9]) is None


def test_an_undecided_answer_is_half_right() -> None:
    positive = np.array([True, True, True, False, False, False])
    measured = separation(np.full(6, 0.5), positive, np.arange(6))
    assert measured is not None
    assert (measured.value, measured.accuracy) == (0.5, 0.5)


def test_windows_stay_in_their_segment_and_hold_the_true_activations() -> None:
    scan, dense = made_scan()
    assert np.array_equal(np.stack([scan.activations(latent) for latent in range(WIDTH)], 1), dense)
    position = scan.place & ((1 << keys.POSITION_BITS) - 1)
    for row in range(0, len(scan.place), 7):
        first, last = (0, 49) if position[row] < 50 else (50, LENGTH - 1)
        assert position[scan.begin[row]] == max(first, position[row] - windows.BACK)
        assert position[scan.end[row] - 1] == min(last, position[row] + windows.AHEAD)
        assert scan.document[scan.begin[row]] == scan.document[row] == scan.document[scan.end[row] - 1]
    # a window ends where a token was left out
    gap = assemble(np.array([0, 1, 3, 4]), np.zeros(4, int), np.array([0]), np.array([0]), np.ones(1), width=1)
    assert gap.end.tolist() == [2, 2, 4, 4]


def test_hard_negatives_hold_a_neighbour_and_never_the_latent(texts: LatentTexts) -> None:
    scan, dense = made_scan()
    assert len(texts.fires) == len(texts.near) == len(texts.random) == 12
    for text in texts.fires:
        assert dense[text.rows, LATENT].any()
    for text in (*texts.random, *texts.near):
        assert not dense[text.rows, LATENT].any()
    for text in texts.near:
        assert text.near in NEIGHBOURS
        assert text.near_activation is not None
        assert np.array_equal(text.near_activation, dense[text.rows, text.near])
        assert text.near_activation.any()
    assert {text.near for text in texts.near} == set(NEIGHBOURS)
    for text in (*texts.fires, *texts.random, *texts.near):
        assert np.array_equal(text.activation, dense[text.rows, LATENT])
        assert len(text.tokens) == len(text.rows) <= windows.WIDTH
    rows = np.concatenate([text.rows for text in (*texts.fires, *texts.random, *texts.near)])
    assert len(np.unique(rows)) == len(rows), "texts overlap"
    again = source_of(scan).texts(LATENT, each=12, seed=0)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(texts.fires, again.fires, strict=True))


def test_firing_texts_come_from_all_strengths() -> None:
    scan, _ = made_scan()
    texts = source_of(scan).texts(LATENT, each=10, seed=0)
    _, values = scan.firings(LATENT)
    edges = np.quantile(values, [0.2, 0.4, 0.6, 0.8])
    centres = [text.activation for text in texts.fires]
    bands = {int(np.searchsorted(edges, v)) for activation in centres for v in activation[activation > 0]}
    assert bands == set(range(5))


def test_marks_are_those_of_delphi(texts: LatentTexts) -> None:
    """Right marks have 0.3 of the text's maximum; wrong ones are as many, and silent; near ones are the neighbour's."""
    shown: list[Question] = []

    class Looking(Knowing):
        def answer(self, questions: Sequence[Question]) -> list[Answer]:
            shown.extend(questions)
            return [0.0] * len(questions)

    score(Sheet(LATENT, Name("x"), None, texts), Looking(1), ("fuzzing",), seed=0)
    counts: dict[int, list[int]] = {}
    for question in shown:
        activation, marks = question.text.activation, question.marks
        assert marks is not None
        if question.text.near is not None:
            near = question.text.near_activation
            assert near is not None
            assert np.array_equal(marks, near >= MARKED * near.max())
        else:
            right = activation[marks].all()
            assert right == np.array_equal(marks, activation >= MARKED * activation.max())
            assert right or not activation[marks].any()
            counts.setdefault(int(question.text.rows[0]), []).append(int(marks.sum()))
    assert all(len(set(both)) == 1 and len(both) >= 2 for both in counts.values())


def test_chances_of_an_answer_are_those_of_delphi() -> None:
    """Values from `Classifier._parse_logprobs` of delphi, commit 3c2e139."""

    def place(token: str, **chances: float) -> dict[str, Any]:
        names = {"one": "1", "zero": "0", "spaced": " 1", "both": "01", "other": "x"}
        listed = [{"token": names[name], "logprob": float(np.log(p))} for name, p in chances.items()]
        return {"token": token, "top_logprobs": listed}

    told = [
        place("[", other=1.0),
        place("1", one=0.6, zero=0.3, other=0.1),
        place(",", other=1.0),
        place("0", zero=0.5, one=0.2, spaced=0.2, both=0.1),
        place("1", other=0.9),
    ]
    assert binary_chances(told) == pytest.approx([0.6 / 0.9, 0.4 / 1.0, 0.0])


def test_the_summary_counts_latents_and_compares_scorers_of_the_same_words() -> None:
    def entry(value: float, words: str = "w") -> dict[str, Any]:
        compared = {"value": value, "low": 0, "high": 1, "accuracy": value, "other": 0.5}
        return {"words": words, "detection": {"random": None, "near": compared, "both": compared}}

    values = np.random.default_rng(0).random(9)
    scores = {i: {"rules": entry(v), "local:m": entry(1 - v)} for i, v in enumerate(values)}
    scores[9] = {"rules": entry(0.1, "another name"), "local:m": entry(0.1)}
    scores[10] = {"rules": entry(0.3)}
    rows, agreements = summary(scores)
    assert [(r["scorer"], r["measure"], r["against"], r["latents"]) for r in rows] == [
        ("local:m", "detection", "near", 10),
        ("local:m", "detection", "both", 10),
        ("rules", "detection", "near", 11),
        ("rules", "detection", "both", 11),
    ]
    assert rows[2]["score"]["value"] == pytest.approx(np.mean([*values, 0.1, 0.3]))
    assert rows[2]["other name"]["value"] == rows[2]["chance"] == 0.5
    assert rows[2]["shuffled words"] is None
    assert [(a["scorers"], a["latents"]) for a in agreements] == [("local:m, rules", 9)] * 2
    assert agreements[0]["rank correlation"]["value"] == pytest.approx(-1)
