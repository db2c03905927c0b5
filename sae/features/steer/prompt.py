"""A prompt's tokens, and the latents that fire at each: what the page shows for a text that someone types.

    run = open_run("runs/demo")
    lm = run.load_language_model(device)
    examine(run, lm, "The capital of France")["latents"][3][0]     # {"latent": 1203, "value": 8.1}

The model reads the text like a document in the harvest: BOS first, no other special token added, and the same rule for
a token's kind. A run on chats also takes a conversation, as JSON like the rows of its data:

    examine(run, lm, '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]')["roles"]

which is rendered by the same chat template. Plain text has no roles, and all of its tokens count as trained on.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sae.data.chat import ChatTemplate, Unusable, read_messages
from sae.data.columns import CHAT, is_conversation
from sae.data.documents import Document
from sae.data.tokens import Tokenized, tokenize, without_first
from sae.features.store.text import Vocabulary
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel
from sae.harvest.rows import Rows
from sae.harvest.stream import KINDS, Harvest
from sae.harvest.traits import refusal, unusable
from sae.runs.text import Run


class PromptError(ValueError):
    """A prompt cannot be used, for instance because it is empty or too long; the message names the remedy."""


def examine(run: Run, lm: LanguageModel, text: str) -> dict[str, Any]:
    """One forward pass over a text, encoded.

    Args:
        run: a finished run; its autoencoder and `lm` may be on any device.
        lm: the run's language model.
        text: at most the run's context long, BOS included; for a run on chats also a conversation as JSON.

    Returns:
        JSON values, one item a token in each list: "tokens" (display strings), "token_ids", "kinds" ("ordinary",
        "bos", "special", "sink" or "other_role") and "latents" ([{"latent", "value"}, ...], strongest first, zeros left
        out); of a conversation also "roles" (None for what is nobody's). The autoencoder was trained on tokens of the
        kind "ordinary" alone (unless --keep-special was given).

    Raises:
        PromptError: no token, more than the run's context, or a conversation that the chat template refuses.
    """
    ids, roles = read_prompt(run, lm, text)
    context = run.config.harvest.context
    if len(ids) > context:
        raise PromptError(
            f"prompt: {len(ids):,} tokens with BOS; the run {run.folder} reads contexts of {context}: shorten the text"
        )
    activations = {
        name: rows.flatten(0, 1)
        for name, rows in harvest_forward(lm.model, {"input_ids": ids[None].to(lm.device)}, run.sites).items()
    }
    zeros = torch.zeros(len(ids), dtype=torch.int64)
    kinds = token_rule(run, lm).token_kinds(ids, activations, wanted_in(run, roles))
    rows = Rows(activations, ids.int(), zeros, torch.arange(len(ids)).int(), zeros.int(), kinds)
    with torch.no_grad():
        codes = run.model.encode(run.inputs_of(rows).to(run.model.W_enc.device))
    return {
        **({} if roles is None else {"roles": roles}),
        "tokens": vocabulary_of(lm.tokenizer).display(ids.numpy()),
        "token_ids": ids.tolist(),
        "kinds": [KINDS[kind] for kind in kinds.tolist()],
        "latents": _strongest_first(codes.rows().flatten(), codes.indices.flatten(), codes.values.flatten(), len(ids)),
    }


def prompt_ids(lm: LanguageModel, text: str) -> Tensor:
    """Token ids of a text as in the harvest, int64 [S]: first, once, the tokens that begin a segment.

    Raises:
        PromptError: the text holds no token.
    """
    # not verbose: the callers refuse a text over the model's limit
    ids = lm.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
    if not ids:
        raise PromptError(f"prompt: {text!r} holds no token; type a text")
    lead = list(lm.beginning)
    return _usable(lm, ids if ids[: len(lead)] == lead else [*lead, *ids])


def _usable(lm: LanguageModel, ids: list[int]) -> Tensor:
    """The ids as a tensor, int64 [S]; PromptError where the model's embedding has no row for one."""
    tokens, rows = torch.tensor(ids, dtype=torch.int64), lm.traits.embeddings
    if (token := unusable(tokens, rows)) is not None:
        name = lm.provenance["name"]
        raise PromptError(refusal(lm.tokenizer, token, rows, name=name, where="it is in the prompt"))
    return tokens


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    ids: Tensor
    """Token ids, int64 [S]."""
    roles: list[str | None] | None
    """The role to whose turn each token belongs, or None; None altogether for a plain text."""


def read_prompt(run: Run, lm: LanguageModel, text: str, *, reply: bool = False) -> Prompt:
    """A text, or for a run on chats a conversation as JSON, as token ids; `reply` begins the assistant's turn.

    Raises:
        PromptError: no token, or a conversation that cannot be rendered.
    """
    messages = _conversation(text) if run.record["data"].get("kind") == CHAT else None
    if messages is None:
        return Prompt(prompt_ids(lm, text), None)
    try:
        conversation = read_messages(messages)
        reply = reply and conversation[-1]["role"] != "assistant"
        rendered = ChatTemplate(lm.tokenizer, "prompt").render(conversation, reply=reply)
    except Unusable as error:
        raise PromptError(f"prompt: a conversation that cannot be read: {error}") from error
    if run.config.harvest.roles is not None and not rendered.spans:
        raise PromptError("prompt: whose turn each token of this conversation is cannot be told from its chat template")
    document = Document(0, rendered.text, None, rendered.spans)
    ids = list(lm.beginning)
    roles: list[str | None] = [None] * len(ids)
    for piece in without_first(tokenize(iter([document]), lm.tokenizer), lm.beginning):
        ids += piece.tokens.tolist()
        roles += _names_of(piece)
    return Prompt(_usable(lm, ids), roles)


def wanted_in(run: Run, roles: list[str | None] | None) -> Tensor | None:
    """Whether each token of a prompt is of a role that the run is trained on, bool [S]; None where all are."""
    wanted = run.config.harvest.roles
    return None if roles is None or wanted is None else torch.tensor([role in wanted for role in roles])


def _conversation(text: str) -> list[dict[str, Any]] | None:
    """The messages of a prompt that is a conversation as JSON; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if is_conversation(value) else None


def _names_of(piece: Tokenized) -> list[str | None]:
    if piece.role is None:
        return [None] * len(piece.tokens)
    return [piece.roles[number] if number >= 0 else None for number in piece.role.tolist()]


@lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """`Vocabulary.of` a tokenizer, read once."""
    return Vocabulary.of(tokenizer)


def token_rule(run: Run, lm: LanguageModel) -> Harvest:
    """A harvest of this run without documents, for its rule about the kinds of tokens."""
    return Harvest(lm, run.sites, cast(Any, ()), run.settings(), run.record["harvest"]["norm_limits"])


def _strongest_first(token: Tensor, latent: Tensor, value: Tensor, tokens: int) -> list[list[dict[str, Any]]]:
    """Entries of codes (flat, [n] each) as one list a token, strongest first."""
    active = (value > 0).nonzero().squeeze(1)
    order = active[value[active].argsort(descending=True, stable=True)]
    latents: list[list[dict[str, Any]]] = [[] for _ in range(tokens)]
    for row, index, strength in zip(token[order].tolist(), latent[order].tolist(), value[order].tolist(), strict=True):
        latents[row].append({"latent": index, "value": strength})
    return latents
