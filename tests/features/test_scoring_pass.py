"""Names of a real run scored by rules: against the codes of the whole text, stopped and continued, reported."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_runs import collected_run
from sae.base.progress import Interrupted
from sae.config import ConfigError, ExplainConfig
from sae.features.collect.text_chunks import live_chunks
from sae.features.explain.examples import Pool
from sae.features.explain.explain import explain
from sae.features.explain.questions import Name, Question
from sae.features.explain.rule_scorer import RuleScorer
from sae.features.explain.scan import Scan, read_scan
from sae.features.explain.texts import TextSource
from sae.features.explain.work import open_pool
from sae.features.store import keys
from sae.features.store.annotations import Annotations
from sae.features.store.store import FeatureStore
from sae.models.saved import read_report
from sae.runs.text import Run

MEASURES = ("detection", "fuzzing", "simulation")
TOKENS = 4096


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path) -> Run:
    return collected_run(tiny_model, corpus)


@pytest.fixture(scope="module")
def named(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with all latents named; tests that score copy it again."""
    folder = tmp_path_factory.mktemp("named") / "run"
    shutil.copytree(run.folder, folder)
    (folder / "annotations.sqlite").unlink(missing_ok=True)
    explain(folder)
    return folder


@pytest.fixture
def folder(named: Path, tmp_path: Path) -> Path:
    shutil.copytree(named, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def opened(named: Path) -> tuple[FeatureStore, Pool, Scan]:
    store = FeatureStore(named)
    pool = open_pool(store, print)
    return store, pool, read_scan(store, pool.held_out, tokens=TOKENS, device="cpu")


def scorable(folder: Path, count: int) -> tuple[int, ...]:
    """Latents that fire often enough to have texts, and seldom enough to be silent in others."""
    firings = FeatureStore(folder).scalars["count"]
    return tuple(int(i) for i in np.argsort(np.where(firings < 120, np.inf, firings))[:count])


def test_a_scan_has_every_firing_of_held_out_documents(run: Run, opened: tuple[FeatureStore, Pool, Scan]) -> None:
    _, pool, scan = opened
    assert pool.held_out(scan.place).all()
    fired: dict[tuple[int, int], float] = {}
    places: set[int] = set()
    seen = 0
    for chunk in live_chunks(run.harvest(run.load_language_model(run.model.W_enc.device), split="train"), [0, 0]):
        if seen >= TOKENS:
            break
        rows, tokens, *_ = chunk.read()
        place = keys.pack(tokens.document, tokens.position)
        codes = run.model.encode(run.inputs_of(rows))
        active = codes.values.flatten() > 0
        at, latent = place[codes.rows().flatten()[active]].tolist(), codes.indices.flatten()[active].tolist()
        fired |= dict(zip(zip(at, latent, strict=True), codes.values.flatten()[active].tolist(), strict=True))
        places.update(place[pool.held_out(place.numpy())].tolist())
        seen += chunk.tokens
    assert scan.place.tolist() == sorted(places)
    checked = 0
    for latent in range(scan.first.size - 1):
        rows, values = scan.firings(latent)
        mine = {p: v for (p, i), v in fired.items() if i == latent and p in places}
        assert dict(zip(scan.place[rows].tolist(), values.tolist(), strict=True)) == pytest.approx(mine, rel=1e-4)
        checked += len(rows)
    assert checked > 1000


def test_rules_predict_what_they_say_token_by_token(opened: tuple[FeatureStore, Pool, Scan], named: Path) -> None:
    store, pool, scan = opened
    (latent,) = scorable(named, 1)
    texts = TextSource(scan, store, pool.neighbours).texts(latent, each=5, seed=0)
    rule = store.annotations.names()[latent]["rule"]
    assert rule["clauses"]
    scorer = RuleScorer(pool, scan)

    def by_hand(row: int) -> float:
        said = {pool.terms.names[number] for number in pool.facts(int(scan.place[row])).tolist()}
        return sum(
            max([0.0, *(v["weight"] for v in clause["values"] if (clause["family"], v["value"]) in said)])
            for clause in rule["clauses"]
        )

    fired = 0
    for text in (*texts.fires, *texts.random, *texts.near):
        expected = np.array([by_hand(row) for row in text.rows])
        marks = np.arange(len(expected)) % 2 == 0
        name = Name("x", rule)
        asked = [Question("simulation", name, text), Question("detection", name, text)]
        simulated, detected, fuzzed = scorer.answer([*asked, Question("fuzzing", name, text, marks)])
        assert simulated == pytest.approx(expected)
        assert detected == pytest.approx(expected.max())
        assert fuzzed == pytest.approx(expected[marks].mean())
        fired += int((expected > 0).sum())
    assert fired > 5


def test_names_by_rules_beat_other_names_also_on_hard_negatives(folder: Path) -> None:
    report = explain(folder, ExplainConfig(score=MEASURES, score_tokens=TOKENS))
    rows = {(row["measure"], row["against"]): row for row in report["scores"]}
    assert set(rows) == {(measure, against) for measure in MEASURES for against in ("random", "near", "both")}
    for (measure, _), row in rows.items():
        assert row["scorer"] == "rules"
        assert row["latents"] >= 8
        assert row["score"]["value"] > row["other name"]["value"]
        assert row["shuffled words"] is None, "a rule has no order of words"
        assert row["chance"] == (0 if measure == "simulation" else 0.5)
    assert rows["detection", "random"]["score"]["low"] > rows["detection", "random"]["other name"]["high"]
    assert report["agreement"] == []
    assert read_report(folder, "explain.json") == report
    for entries in Annotations(folder).scores().values():
        near = entries["rules"]["detection"]["near"]
        if near is not None:
            assert near["low"] <= near["value"] <= near["high"]


def test_a_stopped_pass_keeps_its_scores_and_ends_like_an_unbroken_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = tmp_path / "unbroken"
    shutil.copytree(folder, unbroken)
    latents = scorable(folder, 6)
    config = ExplainConfig(latents=latents, score=("detection", "simulation"), score_tokens=TOKENS, judged=8)
    explain(unbroken, config)
    monkeypatch.setattr(RuleScorer, "questions_at_once", 1)
    answer, calls = RuleScorer.answer, []

    def stopped(self: RuleScorer, questions: Any) -> Any:
        calls.append(len(questions))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(self, questions)

    monkeypatch.setattr(RuleScorer, "answer", stopped)
    with pytest.raises(Interrupted, match="continue with the same command"):
        explain(folder, config)
    assert set(Annotations(folder).scores()) == set(latents[:3])
    explain(folder, config)
    assert len(calls) == 6, "latents that are scored are not asked about again"
    assert Annotations(folder).scores() == Annotations(unbroken).scores()
    # another measure is added, and nothing of the others is lost
    explain(folder, ExplainConfig(latents=latents, score=("fuzzing",), score_tokens=TOKENS, judged=8))
    assert {"detection", "fuzzing", "simulation"} <= set(Annotations(folder).scores()[latents[0]]["rules"])


def test_scores_of_a_name_that_was_replaced_are_not_shown(folder: Path) -> None:
    (latent,) = scorable(folder, 1)
    explain(folder, ExplainConfig(latents=(latent,), score=("detection",), score_tokens=TOKENS))
    notes = Annotations(folder)
    assert set(notes.scores()) == {latent}
    notes.set_names({latent: {**notes.names()[latent], "name": "another one"}})
    assert notes.scores() == {}


def test_a_text_that_is_no_longer_the_collected_one_is_refused(
    opened: tuple[FeatureStore, Pool, Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pool, _ = opened
    monkeypatch.setattr(store, "tokens", lambda document: np.zeros(1 << 16, np.int32))
    with pytest.raises(ConfigError, match=r"has other tokens than when features were collected.*sae features"):
        read_scan(store, pool.held_out, tokens=TOKENS, device="cpu")
