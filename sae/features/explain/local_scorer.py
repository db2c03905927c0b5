"""Names judged by a language model on this machine, from its logits: nothing is generated.

    scorer = LocalScorer(LocalChat("demo", torch.device("cpu")))
    scorer.answer(questions)

Detection and fuzzing ask whether name and text fit; the answer is P(yes) / (P(yes) + P(no)), over the first token. For
simulation the model reads the text as a table of tokens with "unknown" strengths, and the prediction for a token is the
mean of 0 to 9 under the chances that the model gives the digits there (Bills et al. 2023, all tokens in one pass).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.data.packing import padding_token
from sae.features.explain.chats import ExplainerError, LocalChat, Prompt
from sae.features.explain.explainers import Marked
from sae.features.explain.questions import Answer, Name, Question

BATCH_TOKENS = 4096  # of the padded questions in one forward pass
YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
DETECT = "You are given a text and a description. Say whether something in the text fits the description, yes or no."
FUZZ = (
    "You are given a text in which some tokens stand between << and >>, and a description. Say whether those tokens "
    "fit the description, yes or no."
)
SIMULATE = (
    "A description says what a unit of a neural network reacts to. After each token of a text stands how strongly the "
    "unit reacts to it, from 0 (not at all, which is usual) to 9."
)
SHOWN = "Description: colours\n\nThe\t0\n red\t9\n house\t0\n on\t0\n the\t0\n hill\t0\n"
"""One worked example of a table."""


class LocalScorer:
    """Judges the words of names.

    Raises:
        ExplainerError: the model's tokenizer has no tokens of their own for yes and no, or for the digits.
    """

    reads_words = True
    questions_at_once, texts_each = 1, 10

    def __init__(self, chat: LocalChat) -> None:
        self.chat, self.name = chat, f"local:{chat.name}"
        tokenizer = chat.lm.tokenizer
        yes, no = ({self._first(text) for text in texts} for texts in (YES, NO))
        if not yes - no or not no - yes:
            raise ExplainerError(f"model {chat.name}: its tokenizer does not tell yes from no by one token")
        self.yes, self.no = sorted(yes - no), sorted(no - yes)
        digits = [tokenizer(str(digit), add_special_tokens=False)["input_ids"][-1:] for digit in range(10)]
        self.digits = [ids[0] for ids in digits if ids]
        if len(set(self.digits)) < 10:
            raise ExplainerError(f"model {chat.name}: its tokenizer has no token for each digit")
        self._keeps = "logits_to_keep" in inspect.signature(chat.lm.model.forward).parameters

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Scorer.answer`; no question stays without one."""
        answers: list[Answer] = [None] * len(questions)
        ids = {n: self.chat.ids(_prompt(q)) for n, q in enumerate(questions) if q.measure != "simulation"}
        by_length = sorted(ids, key=lambda n: len(ids[n]))
        while by_length:
            # the longest comes last, and all are padded to its length
            count = max(1, min(len(by_length), BATCH_TOKENS // len(ids[by_length[-1]])))
            batch, by_length = by_length[-count:], by_length[:-count]
            for n, chance in zip(batch, self._chances([ids[n] for n in batch]), strict=True):
                answers[n] = chance
        for n, question in enumerate(questions):
            if question.measure == "simulation":
                answers[n] = self._simulate(question)
        return answers

    def threshold(self, name: Name) -> float:
        return 0.5

    def _chances(self, lists: Sequence[list[int]]) -> list[float]:
        """Chances of yes against no after each question."""
        longest = max(len(ids) for ids in lists)
        ids = torch.full((len(lists), longest), padding_token(self.chat.lm.tokenizer))
        mask = torch.zeros_like(ids)
        for row, listed in enumerate(lists):
            ids[row, longest - len(listed) :] = torch.tensor(listed)
            mask[row, longest - len(listed) :] = 1
        logits = self._logits(ids, torch.tensor([longest - 1]), mask)[:, 0]
        odds = logits[:, self.yes].logsumexp(1) - logits[:, self.no].logsumexp(1)
        return torch.sigmoid(odds).tolist()

    def _simulate(self, question: Question) -> np.ndarray:
        """Expected strengths of the tokens, float64 [tokens]."""
        ask = f"{SHOWN}\nDescription: {question.name.words}"
        tokenizer = self.chat.lm.tokenizer
        ids, places = self.chat.ids(Prompt(SIMULATE, ask, 0)), []
        for token in question.text.tokens:
            ids = ids + tokenizer(f"{token}\t", add_special_tokens=False)["input_ids"]
            places.append(len(ids) - 1)
            ids = ids + tokenizer("unknown\n", add_special_tokens=False)["input_ids"]
        limit = self.chat.lm.traits.limit
        if limit is not None and len(ids) > limit:
            raise ExplainerError(f"model {self.chat.name}: it reads {limit} tokens, and simulation needs {len(ids)}")
        logits = self._logits(torch.tensor([ids]), torch.tensor(places))[0]
        chances = logits[:, self.digits].softmax(1)
        return (chances @ torch.arange(10.0, device=chances.device)).double().cpu().numpy()

    def _logits(self, ids: Tensor, places: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, P, V] float32 after the tokens at P places; `ids` [B, T] are padded on the left."""
        lm = self.chat.lm
        mask = torch.ones_like(ids) if mask is None else mask
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        # padding counts no position
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        given = {name: value.to(lm.device) for name, value in given.items()}
        parameters = inspect.signature(lm.model.forward).parameters
        if "position_ids" not in parameters:
            del given["position_ids"]
        with torch.no_grad():
            if self._keeps:
                return lm.model(**given, use_cache=False, logits_to_keep=places.to(lm.device)).logits.float()
            return lm.model(**given, use_cache=False).logits[:, places].float()

    def _first(self, text: str) -> int:
        return self.chat.lm.tokenizer(text, add_special_tokens=False)["input_ids"][0]


def _prompt(question: Question) -> Prompt:
    """The text comes first: names change from question to question, and stand next to the answer."""
    marks = [False] * len(question.text.tokens) if question.marks is None else question.marks.tolist()
    text = Marked(question.text.tokens, marks)
    fuzzing = question.measure == "fuzzing"
    shown = text.marked() if fuzzing else text.plain()
    return Prompt(FUZZ if fuzzing else DETECT, f"Text: {shown}\n\nDescription: {question.name.words}\n\nYes or no?", 1)
