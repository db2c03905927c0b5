"""An OpenAI-compatible HTTP endpoint: several questions at once, within a rate, and again after a passing refusal.

    chat = EndpointChat("http://127.0.0.1:8000/v1", model="qwen", key=None, at_once=8)
    [reply.text for reply in chat.replies([Prompt("You name things.", "Name this.", 20)])]

The key is sent and nowhere written.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from sae.features.explain.chats import ExplainerError, Prompt

TRIES = 5
LONGEST_WAIT = 60.0  # seconds between two tries
LONGEST_REPLY = 1 << 20  # bytes
ALTERNATIVES = 5  # most likely tokens asked for at each place


class Reply(NamedTuple):
    """An answer."""

    text: str
    chances: list[float] | None
    """For every token of the answer with a 0 or a 1, the chance of 1 against 0; None where the endpoint tells none."""


class Usage(NamedTuple):
    """What an endpoint says it has computed."""

    questions: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class EndpointChat:
    """An endpoint `.../v1`; safe to use from several threads.

    Args:
        endpoint: address to which `/chat/completions` is added.
        model: name of the model there.
        key: sent as a bearer token; None sends none.
        at_once: questions that are open at the same time.
        rate: most questions a minute; None sets no limit.
        wait: seconds before the second try, doubled each time; an answer's Retry-After counts where it is longer.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        key: str | None,
        *,
        at_once: int = 1,
        rate: float | None = None,
        wait: float = 2.0,
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ExplainerError(f"--endpoint {endpoint}: expected an address such as http://127.0.0.1:8000/v1")
        self.name, self.address, self.key, self.wait = model, endpoint.rstrip("/") + "/chat/completions", key, wait
        self.at_once, self.spacing = at_once, 60 / rate if rate else 0.0
        self.usage = Usage()
        self._tells_chances = True
        self._next = 0.0
        self._lock, self._failed = threading.Lock(), threading.Event()
        # a redirect would carry the key to another address
        self._opener = urllib.request.build_opener(_NoRedirect)

    def reply(self, prompt: Prompt) -> str:
        """As in `Chat`; ExplainerError where the endpoint is out of reach or gives no answer of a chat."""
        self._failed.clear()
        return self._ask(prompt, chances=False).text

    def replies(self, prompts: Sequence[Prompt], *, chances: bool = False) -> list[Reply]:
        """Answers in the order of the questions; the first failure ends the others.

        Args:
            prompts: the questions.
            chances: also ask for the chances of 0 and 1, which some endpoints do not tell.

        Raises:
            ExplainerError: as `reply`.
        """
        self._failed.clear()
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self._ask, prompt, chances=chances) for prompt in prompts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                # those that wait for their next try give up, too
                self._failed.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, prompt: Prompt, *, chances: bool) -> Reply:
        question: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            "max_tokens": prompt.tokens,
            "temperature": 0,
        }
        extra = {"logprobs": True, "top_logprobs": ALTERNATIVES} if chances and self._tells_chances else {}
        try:
            answer = self._post(json.dumps(question | extra).encode())
        except _RefusedError as error:
            if not extra or error.status not in (400, 422):
                raise
            # an endpoint that does not know these fields
            answer = self._post(json.dumps(question).encode())
            self._tells_chances = False
        try:
            said = json.loads(answer)
            choice = said["choices"][0]
            text, usage = str(choice["message"]["content"] or "").strip(), said.get("usage") or {}
            spent = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            told = (choice.get("logprobs") or {}).get("content") if chances else None
            parsed = None if told is None else binary_chances(told)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ExplainerError(f"{self.address}: not the answer of a chat endpoint ({answer[:80]!r})") from error
        with self._lock:
            self.usage = Usage(
                self.usage.questions + 1, self.usage.input_tokens + spent[0], self.usage.output_tokens + spent[1]
            )
        return Reply(text, parsed)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        wait = self.wait
        for left in reversed(range(TRIES)):
            self._take_turn()
            request = urllib.request.Request(self.address, data=body, headers=headers, method="POST")
            pause = wait
            try:
                with self._opener.open(request, timeout=120) as response:
                    return response.read(LONGEST_REPLY)
            except urllib.error.HTTPError as error:
                if left == 0 or (error.code != 429 and error.code < 500):
                    hint = "; is the key in the environment right?" if error.code in (401, 403) else ""
                    raise _RefusedError(
                        f"{self.address}: HTTP {error.code} ({error.reason}){hint}", error.code
                    ) from error
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if left == 0:
                    raise ExplainerError(f"{self.address}: cannot be reached ({error})") from error
            # questions that were refused together do not come back together
            if self._failed.wait(min(LONGEST_WAIT, pause) * random.uniform(1, 1.25)):
                raise ExplainerError(f"{self.address}: not asked again, as another question failed")
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _take_turn(self) -> None:
        """Wait until the rate allows another question."""
        if not self.spacing:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.spacing
        time.sleep(turn - now)


class _RefusedError(ExplainerError):
    """An HTTP status that is no success."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the redirect is an error."""


def binary_chances(told: Sequence[dict[str, Any]]) -> list[float]:
    """P(1) / (P(0) + P(1)) for each answer token with a 0 or a 1, sums over its most likely alternatives.

    As in delphi's `Classifier._parse_logprobs`: an alternative with a 0 counts as 0, else one with a 1 as 1.

    Args:
        told: `logprobs.content` of an answer.
    """
    chances = []
    for place in told:
        if "0" not in place["token"] and "1" not in place["token"]:
            continue
        weight = [0.0, 0.0]
        for alternative in place["top_logprobs"]:
            for digit in (0, 1):
                if str(digit) in alternative["token"]:
                    weight[digit] += math.exp(alternative["logprob"])
                    break
        chances.append(weight[1] / sum(weight) if sum(weight) > 0 else 0.0)
    return chances


def _seconds(retry_after: str | None) -> float:
    """The header as seconds; 0 for a date or none."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0
