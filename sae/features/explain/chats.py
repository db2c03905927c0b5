"""A language model that is asked for names and judgements: one on this machine, or (`endpoint`) at an address.

chat = LocalChat("HuggingFaceTB/SmolLM2-1.7B-Instruct", torch.device("cpu"))
chat.reply(Prompt("You name things.", "Name this.", 20))
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from sae.data.packing import padding_token
from sae.harvest.language_model import load_language_model, locate_model


class ExplainerError(ValueError):
    """The explainer cannot be used: it is out of reach, refuses, or writes no text; the message names the remedy."""


class Prompt(NamedTuple):
    """A question to a chat."""

    system: str
    user: str
    tokens: int
    """Most tokens of the answer."""


class Chat(Protocol):
    """A language model that answers questions."""

    name: str
    """The model's name."""

    def reply(self, prompt: Prompt) -> str:
        """The answer to one question."""
        ...


class LocalChat:
    """A causal language model of transformers: a hub id or a folder; answers are greedy.

    Raises:
        ModelError: it cannot be loaded.
        ExplainerError: it writes no text.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.lm = load_language_model(locate_model(name, trust_remote_code=False), device=device, precision="auto")
        if (reason := self.lm.traits.no_next_token) is not None:
            raise ExplainerError(f"model {name}: {self.lm.provenance['architecture']} writes no text ({reason})")

    def reply(self, prompt: Prompt) -> str:
        tokenizer = self.lm.tokenizer
        ids = torch.tensor([self.ids(prompt)], device=self.lm.device)
        pad = padding_token(tokenizer)
        generate: Any = self.lm.model.generate
        with torch.no_grad():
            generated = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=prompt.tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a question, up to where the answer begins."""
        tokenizer = self.lm.tokenizer
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(f"{prompt.system}\n\n{prompt.user}\n\nAnswer:")["input_ids"]
        limit = self.lm.traits.limit
        # what is asked stands at the end
        return ids if limit is None else ids[-max(1, limit - prompt.tokens) :]
