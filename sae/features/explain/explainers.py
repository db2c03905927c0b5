"""A language model as explainer and as judge of names: one on this machine, or at an OpenAI-compatible address.

    chat = EndpointChat("http://127.0.0.1:8000/v1", model="qwen", key=None)
    chat.reply("You name things.", "Name this.", tokens=20)

Nothing leaves the machine unless an endpoint is given. The model makes a name from marked examples (Bills et al.
2023) and judges it by **detection** (does the latent fire in this text?) and **fuzzing** (are the right ones marked?),
both from Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language Models".
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from sae.data.packing import padding_token
from sae.harvest.language_model import load_language_model, locate_model

OPEN, CLOSE = "<<", ">>"
AT_ONCE = 5  # texts judged in one question
TRIES = 4
LONGEST_REPLY = 1 << 20


class ExplainerError(ValueError):
    """The explainer cannot be used: it is out of reach, refuses, or writes no text; the message names the remedy."""


class Chat(Protocol):
    """A language model that answers questions."""

    name: str
    """The model's name."""

    def reply(self, system: str, user: str, *, tokens: int) -> str:
        """The answer to one question, at most `tokens` long."""
        ...


class LocalChat:
    """A causal language model of transformers: a hub id or a folder; answers are greedy.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.lm = load_language_model(locate_model(name, trust_remote_code=False), device=device, precision="auto")
        if (reason := self.lm.traits.no_next_token) is not None:
            raise ExplainerError(
                f"--explainer-model {name}: {self.lm.provenance['architecture']} writes no text ({reason})"
            )

    def reply(self, system: str, user: str, *, tokens: int) -> str:
        tokenizer = self.lm.tokenizer
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer([text], add_special_tokens=False, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer([f"{system}\n\n{user}\n\nAnswer:"], return_tensors="pt")["input_ids"]
        limit = self.lm.traits.limit
        if limit is not None and ids.shape[1] + tokens > limit:
            # what is asked stands at the end
            ids = ids[:, -max(1, limit - tokens) :]
        ids = ids.to(self.lm.device)
        pad = padding_token(tokenizer)
        generate: Any = self.lm.model.generate
        with torch.no_grad():
            generated = generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=pad
            )
        return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()


class EndpointChat:
    """An OpenAI-compatible HTTP endpoint, `.../v1`.

    Args:
        endpoint: address to which `/chat/completions` is added.
        model: name of the model there.
        key: sent as a bearer token; None sends none.
        wait: seconds between tries after a refusal that may pass (429, 5xx), doubled each time.
    """

    def __init__(self, endpoint: str, model: str, key: str | None, wait: float = 2.0) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ExplainerError(f"--endpoint {endpoint}: expected an address such as http://127.0.0.1:8000/v1")
        self.name, self.address, self.key, self.wait = model, endpoint.rstrip("/") + "/chat/completions", key, wait

    def reply(self, system: str, user: str, *, tokens: int) -> str:
        """As in `Chat`; ExplainerError where the endpoint is out of reach or gives no answer of a chat."""
        question = {
            "model": self.name,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        answer = self._post(json.dumps(question).encode())
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ExplainerError(f"{self.address}: not the answer of a chat endpoint ({answer[:80]!r})") from error
        return str(text or "").strip()

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        wait = self.wait
        for left in reversed(range(TRIES)):
            request = urllib.request.Request(self.address, data=body, headers=headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return response.read(LONGEST_REPLY)
            except urllib.error.HTTPError as error:
                if left == 0 or (error.code != 429 and error.code < 500):
                    hint = "; is the key in the environment right?" if error.code in (401, 403) else ""
                    raise ExplainerError(f"{self.address}: HTTP {error.code} ({error.reason}){hint}") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if left == 0:
                    raise ExplainerError(f"{self.address}: cannot be reached ({error})") from error
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")


class Marked:
    """A text of tokens, some of them marked."""

    def __init__(self, tokens: Sequence[str], marks: Sequence[bool]) -> None:
        self.tokens, self.marks = list(tokens), list(marks)

    def plain(self) -> str:
        """The text."""
        return _line("".join(self.tokens))

    def marked(self) -> str:
        """The text with runs of marked tokens between << and >>."""
        text, inside = "", False
        for token, mark in zip(self.tokens, self.marks, strict=True):
            if mark != inside:
                text += OPEN if mark else CLOSE
            text, inside = text + token, mark
        return _line(text + (CLOSE if inside else ""))


EXPLAIN = (
    "You study one unit of a neural network that reads text. In each example the tokens at which it is active stand "
    "between << and >>. Say in at most fifteen words what they have in common, or what surrounds them. Answer with the "
    "description alone."
)
DETECT = (
    "You are given a description of what a unit of a neural network reacts to, and numbered texts. For each text say 1 "
    "if the unit reacts to something in it, 0 if not. Answer with a JSON list of numbers alone, one a text, such as "
    "[1, 0, 0]."
)
FUZZ = (
    "You are given a description of what a unit of a neural network reacts to, and numbered texts with tokens between "
    "<< and >>. For each text say 1 if those tokens fit the description, 0 if not. Answer with a JSON list of numbers "
    "alone, one a text, such as [1, 0, 0]."
)


def ask_name(chat: Chat, examples: Sequence[Marked], promoted: Sequence[str]) -> str:
    """A description of a latent, from its examples, strongest first, and the tokens that it makes likely."""
    listed = "\n".join(f"{i}. {example.marked()}" for i, example in enumerate(examples, 1))
    also = f"\n\nTokens that it makes more likely to come next: {', '.join(map(repr, promoted))}" if promoted else ""
    lines = chat.reply(EXPLAIN, f"{listed}{also}\n\nDescription:", tokens=60).strip().splitlines()
    return (lines[0] if lines else "").strip(" \"'*").removeprefix("Description:").strip()[:300] or "no answer"


def ask_verdicts(chat: Chat, name: str, texts: Sequence[str], *, fuzzing: bool = False) -> list[float]:
    """1, 0, or 0.5 where the answer is unclear, for every text."""
    verdicts: list[float] = []
    for begin in range(0, len(texts), AT_ONCE):
        part = texts[begin : begin + AT_ONCE]
        listed = "\n".join(f"{i}. {text}" for i, text in enumerate(part, 1))
        answer = chat.reply(FUZZ if fuzzing else DETECT, f"Description: {name}\n\n{listed}\n\nAnswer:", tokens=40)
        verdicts += _read_list(answer, len(part))
    return verdicts


def _read_list(answer: str, count: int) -> list[float]:
    digits: list[Any] = re.findall(r"(?<![\d.])[01](?![\d.])", answer)
    return [float(d) for d in digits[:count]] + [0.5] * (count - len(digits[:count]))


def _line(text: str) -> str:
    return " ".join(text.split())
