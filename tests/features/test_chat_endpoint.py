"""Questions to an endpoint: several at once, within a rate, again after a passing refusal, and what answers mean."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from chat_server import Oracle, answering

from sae.features.explain.chats import ExplainerError, Prompt
from sae.features.explain.endpoint import EndpointChat, Reply
from sae.features.explain.endpoint_scorer import EndpointScorer, read_strengths, read_verdicts
from sae.features.explain.explainers import read_name
from sae.features.explain.questions import Name, Question
from sae.features.explain.texts import Text


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with answering() as server:
        yield server


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
    question, marks = Question("detection", Name("x"), text), np.array([True, False])
    assert scorer.answer([question] * 7) == pytest.approx([0.8] * 7)
    assert len(oracle.asked) == 2, "five texts in one question"
    # each name by itself, so that no judge compares names
    asked = [question, question, Question("detection", Name("y"), text), Question("fuzzing", Name("y"), text, marks)]
    oracle.asked.clear()
    scorer.answer(asked)
    assert len(oracle.asked) == 3
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
