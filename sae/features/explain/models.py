"""The models of `sae explain`, and what asking an endpoint will cost.

models = Models(config)
models.explainer                            # None where rules name the latents
estimate(prompts, share=100).input_tokens   # of a hundred times these prompts
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from sae.base.device import pick_device
from sae.config import ConfigError, ExplainConfig
from sae.features.explain.chats import Chat, LocalChat, Prompt
from sae.features.explain.endpoint import EndpointChat, Usage
from sae.features.explain.endpoint_scorer import EndpointScorer
from sae.features.explain.examples import Pool
from sae.features.explain.local_scorer import LocalScorer
from sae.features.explain.questions import Scorer
from sae.features.explain.rule_scorer import RuleScorer
from sae.features.explain.scan import Scan

CHARACTERS = 4  # to a token, about, in English


class Estimate(NamedTuple):
    """What an endpoint will be asked, with a token for every four characters of the prompts."""

    questions: int
    input_tokens: int
    output_tokens: int
    """At most."""

    def plus(self, other: Estimate) -> Estimate:
        return Estimate(*(mine + more for mine, more in zip(self, other, strict=True)))

    def cost(self, price: tuple[float, float] | None) -> float | None:
        """In the currency of `price`, which is for a million tokens read and written."""
        return None if price is None else (self.input_tokens * price[0] + self.output_tokens * price[1]) / 1e6

    def check(self, most: int | None) -> None:
        """ConfigError where it is more than `most` tokens."""
        tokens = self.input_tokens + self.output_tokens
        if most is not None and tokens > most:
            raise ConfigError(
                f"--most-tokens {most}: about {tokens:,} tokens are needed ({self.questions:,} questions); name fewer "
                "--latents, or raise it"
            )

    def to_json(self, price: tuple[float, float] | None) -> dict[str, Any]:
        return {**self._asdict(), "cost": self.cost(price)}


def estimate(prompts: Sequence[Prompt], share: float) -> Estimate:
    """The estimate for `share` times as many prompts of the same kind."""
    characters = sum(len(prompt.system) + len(prompt.user) for prompt in prompts)
    written = sum(prompt.tokens for prompt in prompts)
    counts = (len(prompts), characters / CHARACTERS, written)
    return Estimate(*(math.ceil(share * count) for count in counts))


class Models:
    """The models that a configuration names, each loaded once and when it is first needed."""

    def __init__(self, config: ExplainConfig) -> None:
        self.config = config
        self._chats: dict[tuple[str, str], Chat] = {}

    @cached_property
    def explainer(self) -> Chat | None:
        """The model that names latents; None for rules alone."""
        config = self.config
        return None if config.explainer == "rules" else self._chat(config.explainer, str(config.explainer_model))

    @property
    def method(self) -> str:
        """`rules`, `local:MODEL` or `endpoint:MODEL`, as names record it."""
        return _method(self.config.explainer, self.config.explainer_model)

    @property
    def scorer_name(self) -> str:
        """The same of the scorer."""
        return _method(self.config.judge, self.config.judge_model)

    def scorer(self, pool: Pool, scan: Scan) -> Scorer:
        """Who judges the names."""
        if self.config.judge == "rules":
            return RuleScorer(pool, scan)
        chat = self._chat(self.config.judge, str(self.config.judge_model))
        if isinstance(chat, EndpointChat):
            return EndpointScorer(chat)
        assert isinstance(chat, LocalChat)
        return LocalScorer(chat)

    @property
    def usage(self) -> Usage | None:
        """What endpoints say they have computed; None where there is none."""
        used = [chat.usage for chat in self._chats.values() if isinstance(chat, EndpointChat)]
        return Usage(*map(sum, zip(*used, strict=True))) if used else None

    def _chat(self, kind: str, model: str) -> Chat:
        if (kind, model) not in self._chats:
            config = self.config
            if kind == "local":
                self._chats[kind, model] = LocalChat(model, pick_device(config.device))
            else:
                key = os.environ.get(config.key_variable)
                self._chats[kind, model] = EndpointChat(
                    str(config.endpoint), model, key, at_once=config.at_once, rate=config.rate
                )
        return self._chats[kind, model]


def _method(kind: str, model: str | None) -> str:
    return kind if kind == "rules" else f"{kind}:{model}"
