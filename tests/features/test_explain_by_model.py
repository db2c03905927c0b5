"""Names by a language model: over HTTP from a real local server, and by a model on this machine."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import save_tiny_model
from finished_runs import collected_run
from sae.config import ExplainConfig
from sae.features.explain.explain import explain
from sae.features.explain.explainers import EndpointChat, ExplainerError, LocalChat, Marked, ask_name, ask_verdicts
from sae.features.store.store import FeatureStore
from sae.runs.text import Run


class Oracle(ThreadingHTTPServer):
    """Answers chats: names every latent "marked", and says 1 of texts that `knows` finds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []
        self.knows: Any = lambda text: True
        self.address = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, system: str, user: str) -> str:
        if "JSON list" not in system:
            return '"tokens of a river"\nand more'
        texts = re.findall(r"^\d+\. (.*)$", user, flags=re.MULTILINE)
        return "Sure: " + json.dumps([int(self.knows(text)) for text in texts])


class Handler(BaseHTTPRequestHandler):
    server: Oracle

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.keys.append(self.headers.get("Authorization"))
        status = self.server.failures.pop(0) if self.server.failures else 200
        turns = {turn["role"]: turn["content"] for turn in body["messages"]}
        said = {"choices": [{"message": {"content": self.server.answer(turns["system"], turns["user"])}}]}
        data = json.dumps(said if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
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


def busiest(folder: Path, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(-FeatureStore(folder).scalars["count"])[:count])


def test_an_endpoint_names_and_judges(folder: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    chosen = busiest(folder, 2)
    config = ExplainConfig(
        latents=chosen,
        explainer="openai",
        explainer_model="oracle",
        endpoint=oracle.address,
        key_variable="OUR_KEY",
        judged=4,
    )
    report = explain(folder, config)
    assert (report["method"], report["named"]) == ("openai:oracle", 2)
    names = FeatureStore(folder).annotations.names()
    for latent in chosen:
        assert names[latent]["name"] == "tokens of a river"
        # who always says yes is right half of the time
        assert names[latent]["score"] == names[latent]["fuzzing"] == 0.5
        assert names[latent]["recall"] == 1.0
        assert names[latent]["rule_score"] is not None
    assert {a["path"] for a in oracle.asked} == {"/v1/chat/completions"}
    assert set(oracle.keys) == {"Bearer secret"}
    shown = next(a for a in oracle.asked if "JSON list" not in a["messages"][0]["content"])["messages"][1]["content"]
    assert "<<" in shown
    asked = len(oracle.asked)
    explain(folder, config)
    assert len(oracle.asked) == asked, "named latents are not asked about again"
    explain(folder, ExplainConfig(latents=chosen))
    assert FeatureStore(folder).annotations.names()[chosen[0]]["method"] == "openai:oracle"


def test_a_judge_who_sees_the_marks_scores_right_in_fuzzing(folder: Path, oracle: Oracle) -> None:
    """The oracle knows the strongest token of the latent by heart: right marks are told from wrong ones."""
    (latent,) = busiest(folder, 1)
    record = FeatureStore(folder).record(latent)
    fires = {e["tokens"][i] for e in record["examples"] for i, v in enumerate(e["values"]) if v > 0}
    oracle.knows = lambda text: (
        (m := re.search("<<(.*?)>>", text)) is not None and any(m[1] in f or f in m[1] for f in fires)
    )
    settings: dict[str, Any] = {"explainer": "openai", "explainer_model": "oracle", "endpoint": oracle.address}
    explain(folder, ExplainConfig(latents=(latent,), **settings))
    name = FeatureStore(folder).annotations.names()[latent]
    assert name["fuzzing"] > 0.6
    assert name["recall"] == 0.0, "texts of detection carry no marks"


def test_a_busy_endpoint_is_asked_again_and_a_refusal_is_told(oracle: Oracle) -> None:
    chat = EndpointChat(oracle.address, "oracle", None, wait=0.01)
    oracle.failures = [429, 503]
    assert ask_verdicts(chat, "x", ["a", "b", "c", "d", "e", "f"]) == [1.0] * 6
    assert oracle.keys[0] is None
    oracle.failures = [401]
    with pytest.raises(ExplainerError, match=r"HTTP 401.*key"):
        chat.reply("s", "u", tokens=3)
    oracle.failures = [500] * 4
    with pytest.raises(ExplainerError, match="HTTP 500"):
        chat.reply("s", "u", tokens=3)
    nobody = EndpointChat("http://127.0.0.1:9", "oracle", None, wait=0.01)
    with pytest.raises(ExplainerError, match="cannot be reached"):
        nobody.reply("s", "u", tokens=3)
    with pytest.raises(ExplainerError, match="expected an address"):
        EndpointChat("file:///etc/passwd", "oracle", None)


def test_answers_that_do_not_tell_count_as_half() -> None:
    class Mute:
        name = "mute"

        def reply(self, system: str, user: str, *, tokens: int) -> str:
            return "I cannot say. 17 0.5"

    assert ask_verdicts(Mute(), "x", ["a", "b"]) == [0.5, 0.5]
    assert ask_name(Mute(), [Marked(["a", " b"], [False, True])], []) == "I cannot say. 17 0.5"


def test_runs_of_fired_tokens_are_marked_together() -> None:
    text = Marked(["a", " b", " c", " d", " e"], [False, True, True, False, True])
    assert text.marked() == "a<< b c>> d<< e>>"
    assert text.plain() == "a b c d e"


def test_a_model_on_this_machine_names_too(folder: Path, tiny_model: Path) -> None:
    """A random model says nothing sensible, and its verdicts are worth what they are."""
    (latent,) = busiest(folder, 1)
    settings: dict[str, Any] = {"explainer": "local", "explainer_model": str(tiny_model), "judged": 2, "examples": 2}
    explain(folder, ExplainConfig(latents=(latent,), **settings))
    name = FeatureStore(folder).annotations.names()[latent]
    assert name["method"] == f"local:{tiny_model}"
    assert 0 <= name["score"] <= 1
    assert name["name"]


def test_an_encoder_is_no_explainer(tmp_path: Path) -> None:
    with pytest.raises(ExplainerError, match="writes no text"):
        LocalChat(str(save_tiny_model("modernbert", tmp_path)), torch.device("cpu"))
