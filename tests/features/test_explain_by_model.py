"""Names by a language model: over HTTP from a real local server, and by a model on this machine."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import save_tiny_model
from finished_runs import collected_run
from sae.config import ConfigError, ExplainConfig
from sae.features.explain.chats import ExplainerError, LocalChat, Prompt
from sae.features.explain.endpoint import EndpointChat, Reply
from sae.features.explain.endpoint_scorer import EndpointScorer, read_strengths, read_verdicts
from sae.features.explain.explain import explain
from sae.features.explain.explainers import Marked, read_name
from sae.features.explain.local_scorer import LocalScorer
from sae.features.explain.questions import Name, Question
from sae.features.explain.scan import read_scan
from sae.features.explain.texts import LatentTexts, Text, TextSource
from sae.features.explain.work import open_pool
from sae.features.store.store import FeatureStore
from sae.runs.text import Run
from sae.selftest.world import LLAMA, VOCABULARY, save_model


class Oracle(ThreadingHTTPServer):
    """Answers chats: names every latent, says 1 of texts that `knows` finds, and how strong each token is."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []
        self.retry_after: str | None = None
        self.knows: Any = lambda text: True
        self.chance: float | None = None
        self.slow = 0.0
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, system: str, user: str) -> str:
        if "how strongly" in system:
            return json.dumps([int(self.knows(text)) for text in re.findall(r"^\d+\. (.*)$", user, flags=re.MULTILINE)])
        if "JSON list" not in system:
            return f'"tokens of a river {zlib.crc32(user.encode()) % 1000}"\nand more'
        texts = re.findall(r"^\d+\. (.*)$", user, flags=re.MULTILINE)
        return "Sure: " + json.dumps([int(self.knows(text)) for text in texts])

    def logprobs(self, text: str) -> dict[str, Any]:
        """A token for every character, digits with the chance of 1."""
        chance = self.chance or 0.0
        both = [{"token": "1", "logprob": math.log(chance)}, {"token": "0", "logprob": math.log(1 - chance)}]
        return {"content": [{"token": c, "top_logprobs": both if c in "01" else []} for c in text]}


class Handler(BaseHTTPRequestHandler):
    server: Oracle

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append({"path": self.path, **body})
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            status = server.failures.pop(0) if server.failures else 200
        time.sleep(server.slow)
        turns = {turn["role"]: turn["content"] for turn in body["messages"]}
        text = server.answer(turns["system"], turns["user"])
        choice: dict[str, Any] = {"message": {"content": text}}
        if body.get("logprobs") and server.chance is not None:
            choice["logprobs"] = server.logprobs(text)
        said = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        data = json.dumps(said if status == 200 else {"error": "no"}).encode()
        with server.lock:
            server.open -= 1
        self.send_response(status)
        if status != 200 and server.retry_after:
            self.send_header("Retry-After", server.retry_after)
        if status in (301, 302):
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    server = Oracle()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


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
    assert not [path for path in folder.iterdir() if b"secret-key-of-ours" in path.read_bytes()]
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


def prompts(count: int) -> list[Prompt]:
    return [Prompt("s", f"question {i}", 3) for i in range(count)]


def test_questions_go_out_together_in_order_and_within_the_rate(oracle: Oracle) -> None:
    oracle.slow = 0.05
    chat = EndpointChat(oracle.address, "oracle", None, at_once=6)
    begun = time.monotonic()
    chat.replies(prompts(12))
    assert 2 <= oracle.most_open <= 6
    assert time.monotonic() - begun < 12 * 0.05
    oracle.slow, oracle.times = 0.0, []
    EndpointChat(oracle.address, "oracle", None, at_once=6, rate=1200).replies(prompts(6))
    # 1,200 a minute are one every 0.05 s
    assert np.diff(sorted(oracle.times)).min() > 0.02
    assert max(oracle.times) - min(oracle.times) > 5 * 0.05 - 0.02


def test_a_busy_endpoint_is_asked_again_and_a_refusal_is_told(oracle: Oracle) -> None:
    chat = EndpointChat(oracle.address, "oracle", None, at_once=2, wait=0.01)
    oracle.failures, oracle.retry_after = [429, 503], "0.3"
    begun = time.monotonic()
    assert len(chat.replies(prompts(2))) == 2
    assert time.monotonic() - begun > 0.3, "Retry-After is waited for"
    assert oracle.keys[0] is None
    oracle.retry_after = None
    for status, said in ((401, r"HTTP 401.*key"), (302, "HTTP 302")):
        oracle.failures = [status]
        with pytest.raises(ExplainerError, match=said):
            chat.reply(prompts(1)[0])
    oracle.failures = [500] * 5
    with pytest.raises(ExplainerError, match="HTTP 500"):
        chat.reply(prompts(1)[0])
    nobody = EndpointChat("http://127.0.0.1:9", "oracle", None, wait=0.01)
    with pytest.raises(ExplainerError, match="cannot be reached"):
        nobody.reply(prompts(1)[0])
    with pytest.raises(ExplainerError, match="expected an address"):
        EndpointChat("file:///etc/passwd", "oracle", None)


def test_chances_are_used_where_an_endpoint_tells_them(oracle: Oracle) -> None:
    oracle.chance = 0.8
    scorer = EndpointScorer(EndpointChat(oracle.address, "oracle", None))
    text = Text(np.arange(2), ("a", " b"), 0, np.zeros(2, np.float32))
    question = Question("detection", Name("x"), text)
    assert scorer.answer([question] * 7) == pytest.approx([0.8] * 7)
    assert len(oracle.asked) == 2, "five texts in one question"
    # this one does not know logprobs
    oracle.chance, oracle.failures = None, [400]
    assert scorer.answer([question]) == [1.0]
    oracle.asked.clear()
    assert scorer.answer([question]) == [1.0]
    assert "logprobs" not in oracle.asked[0]


def test_answers_that_do_not_tell_stay_open() -> None:
    assert read_verdicts(Reply("I cannot say. 17 0.5", None), 2) == [None, None]
    assert read_verdicts(Reply("[1, 0]", [0.3]), 2) == [1.0, 0.0]
    assert read_verdicts(Reply("Text 1 fits, text 2 too: [0, 1]", None), 2) == [0.0, 1.0]
    assert read_strengths("[0, 9, 3]", 3) is not None
    assert read_strengths("[0, 9]", 3) is read_strengths("[0, 10, 3]", 3) is read_strengths("none", 3) is None
    assert read_name("") == "no answer"


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
