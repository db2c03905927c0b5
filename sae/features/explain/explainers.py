"""What a language model is told: prompts for a name, and for judgements of names by texts.

    ask_name(chat, examples, promoted)                  # "names of rivers"

The model makes a name from marked examples (Bills et al. 2023). Nothing leaves the machine unless an endpoint is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from sae.features.explain.chats import Prompt

OPEN, CLOSE = "<<", ">>"
NAME_TOKENS, LONGEST_NAME = 60, 300


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


def name_prompt(examples: Sequence[Marked], promoted: Sequence[str]) -> Prompt:
    """Asks for a description of a latent, from its examples, strongest first, and the tokens that it makes likely."""
    listed = "\n".join(f"{i}. {example.marked()}" for i, example in enumerate(examples, 1))
    also = f"\n\nTokens that it makes more likely to come next: {', '.join(map(repr, promoted))}" if promoted else ""
    return Prompt(EXPLAIN, f"{listed}{also}\n\nDescription:", NAME_TOKENS)


def read_name(answer: str) -> str:
    """The description in an answer."""
    lines = answer.strip().splitlines()
    return (lines[0] if lines else "").strip(" \"'*").removeprefix("Description:").strip()[:LONGEST_NAME] or "no answer"


def _line(text: str) -> str:
    return " ".join(text.split())
