"""Names by a language model: over HTTP from a real local server, and by a model on this machine."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Oracle, answering
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import save_tiny_model
from finished_runs import collected_run
from sae.config import ConfigError, ExplainConfig
from sae.features.explain.chats import ExplainerError, LocalChat
from sae.features.explain.explain import explain
from sae.features.explain.explainers import Marked
from sae.features.explain.local_scorer import LocalScorer
from sae.features.explain.questions import Name, Question
from sae.features.explain.scan import read_scan
from sae.features.explain.texts import LatentTexts, Text, TextSource
from sae.features.explain.work import open_pool
from sae.features.store.store import FeatureStore
from sae.runs.text import Run
from sae.selftest.world import LLAMA, VOCABULARY, save_model


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with answering() as server:
        yield server


@pytest.fixture
def folder(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    run: Run = collected_run(tiny_model, corpus)
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / "annotations.sqlite").unlink(missing_ok=True)
    return copy


def scorable(folder: Path, count: int) -> tuple[int, ...]:
    """Latents that fire often enough to have texts, and seldom enough to be silent in others."""
    firings = FeatureStore(folder).scalars["count"]
    return tuple(int(i) for i in np.argsort(np.where(firings < 120, np.inf, firings))[:count])


def config_for(oracle: Oracle, latents: tuple[int, ...], **more: Any) -> ExplainConfig:
    settings = {"explainer": "endpoint", "explainer_model": "oracle", "endpoint": oracle.address, "score_tokens": 4096}
    return ExplainConfig(latents=latents, **{**settings, "judged": 4, **more})


def test_an_endpoint_names_and_judges(folder: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret-key-of-ours")
    latents = scorable(folder, 2)
    config = config_for(oracle, latents, key_variable="OUR_KEY")
    report = explain(folder, config)
    assert (report["method"], report["named"]) == ("endpoint:oracle", 2)
    names, scores = FeatureStore(folder).annotations.names(), FeatureStore(folder).annotations.scores()
    for latent in latents:
        assert names[latent]["name"].startswith("tokens of a river ")
        entry = scores[latent]["endpoint:oracle"]
        # who always says yes is right half of the time
        for measure in ("detection", "fuzzing"):
            assert entry[measure]["near"]["value"] == entry[measure]["near"]["accuracy"] == 0.5
        assert names[latent]["score"] == 0.5
        assert names[latent]["rule_score"] is not None
    assert {a["path"] for a in oracle.asked} == {"/v1/chat/completions"}
    assert set(oracle.keys) == {"Bearer secret-key-of-ours"}
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"secret-key-of-ours" in path.read_bytes()]
    assert report["endpoint"] == {
        "questions": len(oracle.asked),
        "input_tokens": 7 * len(oracle.asked),
        "output_tokens": 3 * len(oracle.asked),
    }
    shown = next(a for a in oracle.asked if "JSON list" not in a["messages"][0]["content"])["messages"][1]["content"]
    assert "<<" in shown
    asked = len(oracle.asked)
    explain(folder, config)
    assert len(oracle.asked) == asked, "named and scored latents are not asked about again"
    explain(folder, ExplainConfig(latents=latents))
    assert FeatureStore(folder).annotations.names()[latents[0]]["method"] == "endpoint:oracle"


def test_a_judge_who_knows_the_texts_is_right_and_one_scorer_adds_to_another(folder: Path, oracle: Oracle) -> None:
    """The oracle finds the texts in which the latent fires by their tokens; rules score the same names beside it."""
    (latent, other) = scorable(folder, 2)
    config = config_for(
        oracle, (latent, other), explainer="rules", explainer_model=None, scorer="endpoint", scorer_model="oracle",
        score=("detection,fuzzing", "simulation"), judged=6,
    )  # fmt: skip
    explain(folder, ExplainConfig(latents=(latent, other)))
    texts = texts_of(folder, latent, config)
    plain = {" ".join("".join(text.tokens).split()) for text in texts.fires}
    oracle.knows = lambda text: text in plain
    report = explain(folder, config)
    entry = FeatureStore(folder).annotations.scores()[latent]["endpoint:oracle"]
    assert entry["detection"]["random"]["value"] == entry["detection"]["near"]["value"] == 1.0
    assert entry["detection"]["near"]["accuracy"] == 1.0
    assert entry["fuzzing"]["near"]["value"] == 0.5, "texts of fuzzing are told apart by their marks"
    assert entry["simulation"]["near"]["value"] == 0.0
    assert entry["unanswered"] == 0
    assert entry["near"]
    explain(folder, ExplainConfig(latents=(latent, other), score=("detection",), score_tokens=4096))
    both = FeatureStore(folder).annotations.scores()[latent]
    assert set(both) == {"endpoint:oracle", "rules"}
    assert set(both["endpoint:oracle"]) >= {"detection", "fuzzing", "simulation"}
    assert {row["scorer"] for row in report["scores"]} == {"endpoint:oracle"}


def texts_of(folder: Path, latent: int, config: ExplainConfig) -> LatentTexts:
    store = FeatureStore(folder)
    pool = open_pool(store, print)
    scan = read_scan(store, pool.held_out, tokens=config.score_tokens, device="cpu")
    return TextSource(scan, store, pool.neighbours).texts(latent, config.judged or 0, config.seed)


def test_the_estimate_is_what_is_asked(folder: Path, oracle: Oracle) -> None:
    latents = scorable(folder, 3)
    config = config_for(oracle, latents, price=(1.0, 2.0))
    told = explain(folder, dataclasses.replace(config, estimate=True))["estimate"]
    assert not oracle.asked
    with pytest.raises(ConfigError, match=r"--most-tokens 10.*tokens are needed"):
        explain(folder, dataclasses.replace(config, most_tokens=10))
    assert not oracle.asked
    explain(folder, config)
    assert told["questions"] == len(oracle.asked)
    sent = sum(len(turn["content"]) for asked in oracle.asked for turn in asked["messages"]) / 4
    # names are not known before they are made
    assert told["input_tokens"] == pytest.approx(sent, rel=0.2)
    assert told["cost"] == pytest.approx((told["input_tokens"] + 2 * told["output_tokens"]) / 1e6)


def test_runs_of_fired_tokens_are_marked_together() -> None:
    text = Marked(["a", " b", " c", " d", " e"], [False, True, True, False, True])
    assert text.marked() == "a<< b c>> d<< e>>"
    assert text.plain() == "a b c d e"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads texts as long as those of simulation."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "vocab_size": VOCABULARY, "max_position_embeddings": 4096})).eval()
    return save_model(model, tmp_path_factory.mktemp("reader"))


def test_a_model_on_this_machine_names_and_judges(folder: Path, reader: Path) -> None:
    """A random model says nothing sensible, and its verdicts are worth what they are."""
    (latent,) = scorable(folder, 1)
    config = ExplainConfig(
        latents=(latent,), explainer="local", explainer_model=str(reader), judged=4, examples=2, score_tokens=4096,
        score=("detection", "simulation"),
    )  # fmt: skip
    explain(folder, config)
    name = FeatureStore(folder).annotations.names()[latent]
    assert name["method"] == f"local:{reader}"
    entry = FeatureStore(folder).annotations.scores()[latent][f"local:{reader}"]
    assert name["score"] == entry["detection"]["both"]["value"]
    assert 0 <= entry["detection"]["near"]["low"] <= entry["detection"]["near"]["value"] <= 1
    assert -1 <= entry["simulation"]["near"]["value"] <= 1


def test_local_answers_do_not_depend_on_what_is_asked_beside_them(reader: Path, tiny_model: Path) -> None:
    """Questions are padded to one length, and a batch gives what each gives alone."""
    scorer = LocalScorer(LocalChat(str(reader), torch.device("cpu")))
    texts = [Text(np.arange(n), tuple(f" word{i}" for i in range(n)), 0, np.zeros(n, np.float32)) for n in (2, 9, 30)]
    asked = [Question("detection", Name("a name"), text) for text in texts]
    alone = [scorer.answer([question])[0] for question in asked]
    assert scorer.answer(asked) == pytest.approx(alone, abs=1e-5)
    assert len({round(float(a), 6) for a in alone if isinstance(a, float)}) == 3
    strengths = scorer.answer([Question("simulation", Name("a name"), texts[1])])[0]
    assert isinstance(strengths, np.ndarray)
    assert strengths.shape == (9,)
    assert (strengths >= 0).all()
    assert (strengths <= 9).all()
    short = LocalScorer(LocalChat(str(tiny_model), torch.device("cpu")))
    with pytest.raises(ExplainerError, match="reads 64 tokens, and simulation needs"):
        short.answer([Question("simulation", Name("a name"), texts[1])])


def test_an_encoder_is_no_explainer(tmp_path: Path) -> None:
    with pytest.raises(ExplainerError, match="writes no text"):
        LocalChat(str(save_tiny_model("modernbert", tmp_path)), torch.device("cpu"))
