"""Names: found where there is a pattern, scored on other documents, worthless when given to another latent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finished_runs import collected_run
from sae.cli.main import parse
from sae.config import ConfigError, ExplainConfig
from sae.features.collect.text_chunks import live_chunks
from sae.features.explain.examples import Pool
from sae.features.explain.explain import explain
from sae.features.explain.induction import Background, LabelledTokens, induce
from sae.features.explain.naming import name_of, token_groups
from sae.features.explain.predicates import FAMILIES, DocumentText, Terms, gather
from sae.features.explain.scoring import auroc, judge, mean_interval
from sae.features.explain.work import nearest_atoms, open_pool
from sae.features.store import keys
from sae.features.store.store import FeatureStore
from sae.models.saved import read_report
from sae.runs.text import Run


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path) -> Run:
    return collected_run(tiny_model, corpus)


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A copy of the run without names."""
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / "annotations.sqlite").unlink(missing_ok=True)
    return copy


def test_a_page_tells_words_sentences_and_scripts() -> None:
    tokens = [
        "Paris",
        " is",
        " cap",
        "ital",
        ",",
        " since",
        " ",
        "1",
        "9",
        "69",
        " (",
        "now",
        ").",
        " It",
        " 日本",
        "\n",
        "A",
    ]
    page = DocumentText(tokens)

    def said(token: str) -> dict[str, tuple[str, ...]]:
        return page.describe(tokens.index(token))

    assert said("ital")["word"] == ("capital",)
    assert said("ital")["piece"] == ("end of a word",)
    assert said("ital")["previous"] == ("is",)
    assert said("9")["kind"] == ("year",)
    assert said("now")["place"] == ("early in the text", "in brackets")
    assert "start of a sentence" in said(" It")["place"]
    assert "start of a line" in said("A")["place"]
    assert said(" 日本")["kind"] == ("cjk script",)
    assert "case" not in said(" 日本")
    assert "word" not in said(" ")
    assert said("Paris")["case"] == ("capitalised",)
    assert said("Paris")["next"] == ("is",)
    assert page.topic == ("capital", "now", "paris", "since")


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    draw = np.random.default_rng(0)
    score, positive = draw.integers(0, 5, 60).astype(float), draw.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    weight = draw.random(60)
    weights = [p * n for p in weight[positive] for n in weight[~positive]]
    assert auroc(score, positive, weight) == pytest.approx(np.average(pairs, weights=weights))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores one apart: AUROC = Φ(1/√2) = 0.7602 (Bamber 1975)."""
    draw = np.random.default_rng(1)
    covered = []
    for trial in range(120):
        positive = np.arange(80) < 40
        score = draw.normal(size=80) + positive
        found = judge(score, positive, np.arange(80), 0.5, seed=trial)
        covered.append(found.low <= 0.7602 <= found.high)
    assert 0.88 <= np.mean(covered) <= 1.0
    assert mean_interval(np.array([0.5, 0.7]))["value"] == pytest.approx(0.6)


def test_tokens_of_one_document_widen_the_interval() -> None:
    positive = np.arange(80) < 40
    score = np.random.default_rng(2).normal(size=80) + positive
    alone = judge(score, positive, np.arange(80), 0.5)
    together = judge(np.repeat(score[::4], 4), np.repeat(positive[::4], 4), np.repeat(np.arange(20), 4), 0.5)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def sampled(texts: list[tuple[list[str], int, bool]]) -> tuple[LabelledTokens, Terms]:
    """A sample from (tokens, position, fires), each text a document."""
    terms = Terms()
    lists = []
    for tokens, position, _ in texts:
        page = DocumentText(tokens)
        said = [n for f, v in page.describe(position).items() for n in terms.add(f, v)]
        lists.append(np.array(said + terms.add("topic", page.topic), np.int32))
    positive = np.array([fires for *_, fires in texts])
    document = np.arange(len(texts))
    return LabelledTokens(gather(lists, terms), positive, np.ones(len(texts)), document, document), terms


def texts_where(fires: list[tuple[list[str], int]], silent: list[tuple[list[str], int]]) -> Any:
    return [(t, p, True) for t, p in fires] + [(t, p, False) for t, p in silent]


def year(word: str) -> str:
    return str(1700 + 29 * FILLER.index(word))


FILLER: list[str] = [*"one two three four five six seven eight nine ten eleven twelve".split()]


@pytest.mark.parametrize(
    ("fires", "silent", "expected"),
    [
        (lambda w: (["See", " red", f" {w}"], 1), lambda w: (["See", f" {w}", " red"], 1), "“red”"),
        (lambda w: (["See", " old", f" {w}"], 2), lambda w: (["See", " new", f" {w}"], 2), "tokens after “old”"),
        (lambda w: (["A", " ", *year(w)], 2 + len(w) % 4), lambda w: (["A", f" {w}"], 1), "years"),
        (lambda w: (["The", " ship", f" {w}"], 2), lambda w: (["The", " cart", f" {w}"], 2), "tokens after “ship”"),
        (lambda w: (["The", f" {w}ing"], 1), lambda w: (["The", f" {w}er"], 1), "words ending in -ing"),
    ],
)
def test_what_was_planted_is_found_and_named(fires: Any, silent: Any, expected: str) -> None:
    words = FILLER * 2
    sample, terms = sampled(texts_where([fires(w) for w in words], [silent(w) for w in words]))
    rule = induce(sample, Background(np.zeros(len(terms)), 0))
    assert name_of(rule.to_json(terms)) == expected
    assert auroc(rule.score(sample.facts, len(terms)), sample.positive) == 1.0


def test_no_pattern_gives_no_name() -> None:
    draw = np.random.default_rng(3)
    words = [FILLER[i] for i in draw.integers(0, 12, 60)]
    sample, terms = sampled([(["See", f" {w}", " now"], 1, bool(i % 2)) for i, w in enumerate(words)])
    rule = induce(sample, Background(np.zeros(len(terms)), 0))
    assert name_of(rule.to_json(terms)) == "no clear pattern"
    assert rule.clauses == []


def test_every_family_has_words_for_its_name() -> None:
    for family in FAMILIES:
        clause = {"family": family, "values": [{"value": "x", "weight": 1.0, "share": 1.0}]}
        assert "x" in name_of({"clauses": [clause], "threshold": 0.0})
    long = [{"value": f"value{i}" * 9, "weight": 1.0, "share": 0.1} for i in range(9)]
    assert len(name_of({"clauses": [{"family": "token", "values": long}], "threshold": 0.0})) <= 140


def test_tokens_with_like_vectors_share_a_group() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=draw)
    vectors = centres.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 16, generator=draw)
    groups = token_groups(vectors, range(60), lambda token: f"t{token}")
    for kind in range(3):
        assert len({groups[20 * kind + i] for i in range(20)}) == 1
    assert len(set(groups.values())) == 3


def test_silence_is_known_and_documents_are_kept_apart(run: Run, corpus: Path) -> None:
    """Against the codes of the whole corpus that features were collected on."""
    store = FeatureStore(run.folder)
    pool = Pool(store, nearest_atoms(store.lens.atoms()))
    fired: dict[int, set[int]] = {latent: set() for latent in range(128)}
    lm = run.load_language_model(run.model.W_enc.device)
    chunks = live_chunks(run.harvest(lm, split="train"), [0, 0])
    seen = 0
    while seen < 8_192:
        chunk = next(chunks)
        rows, tokens, *_ = chunk.read()
        place = keys.pack(tokens.document, tokens.position)
        codes = run.model.encode(run.inputs_of(rows))
        active = codes.values.flatten() > 0
        row, latent = codes.rows().flatten()[active], codes.indices.flatten()[active]
        for i, p in zip(latent.tolist(), place[row].tolist(), strict=True):
            fired[i].add(p)
        seen += chunk.tokens
    checked = 0
    for latent in np.flatnonzero(store.scalars["count"] > 20)[:40]:
        examples = pool.examples(int(latent))
        assert not set(examples.fit.document) & set(examples.test.document)
        for sample in (examples.fit, examples.test):
            assert set(sample.place[sample.positive].tolist()) <= fired[int(latent)]
            assert not set(sample.place[~sample.positive].tolist()) & fired[int(latent)]
            checked += int((~sample.positive).sum())
    assert checked > 1000


def test_names_beat_the_names_of_others_on_held_out_documents(folder: Path) -> None:
    report = explain(folder)
    store = FeatureStore(folder)
    live = int((store.scalars["count"] > 0).sum())
    assert (report["live"], report["named"]) == (live, live)
    assert report["score"]["low"] > 0.7
    assert report["score"]["low"] > report["control"]["high"] + 0.1
    assert abs(report["control"]["value"] - 0.5) < 0.06
    assert read_report(folder, "explain.json") == report
    names = store.annotations.names()
    for name in names.values():
        assert name["name"]
        if name["score"] is not None:
            assert 0 <= name["low"] <= name["score"] <= name["high"] <= 1
            assert min(name["positives"], name["negatives"]) >= 5


def test_named_latents_are_skipped_unless_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuple(int(i) for i in np.argsort(-FeatureStore(folder).scalars["count"])[:6])
    first = explain(folder, ExplainConfig(latents=chosen))
    assert first["named"] == 6
    before = FeatureStore(folder).annotations.names()
    asked: list[int] = []
    examples = Pool.examples

    def counted(self: Pool, latent: int) -> Any:
        asked.append(latent)
        return examples(self, latent)

    monkeypatch.setattr(Pool, "examples", counted)
    explain(folder, ExplainConfig(latents=chosen))
    assert asked == []
    explain(folder, ExplainConfig(latents=chosen[:2], again=True))
    assert asked == list(chosen[:2])
    after = FeatureStore(folder).annotations.names()
    assert {i: n["name"] for i, n in after.items()} == {i: n["name"] for i, n in before.items()}


def test_a_latent_that_never_fired_or_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="latents 0 to 127"):
        explain(folder, ExplainConfig(latents=(128,)))
    for given in (["--explainer", "endpoint"], ["--endpoint", "http://x"], ["--explainer", "local"]):
        with pytest.raises(ConfigError, match=r"--(endpoint|explainer-model)"):
            parse(["explain", str(folder), *given])


def test_a_rule_is_saved_with_what_it_scores_by(folder: Path) -> None:
    """The saved clauses alone give the scores of the saved names again."""
    store = FeatureStore(folder)
    chosen = tuple(int(i) for i in np.argsort(-store.scalars["count"])[:4])
    explain(folder, ExplainConfig(latents=chosen))
    pool = open_pool(store, print)
    for latent, name in store.annotations.names().items():
        test = pool.examples(latent).test
        score = np.zeros(len(test.positive))
        for clause in name["rule"]["clauses"]:
            weight = np.zeros(len(pool.terms))
            for entry in clause["values"]:
                weight[pool.terms.number[clause["family"], entry["value"]]] = entry["weight"]
            score += test.facts[clause["family"]].best(weight)
        assert auroc(score, test.positive) == pytest.approx(name["score"], abs=0.01)
