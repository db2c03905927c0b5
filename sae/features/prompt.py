"""A prompt's tokens, and the latents that fire at each: what the page shows when someone types a text.

    run = open_run("runs/demo")
    lm = run.load_language_model(device)
    examine(run, lm, "The capital of France")["latents"][3][0]     # {"latent": 1203, "value": 8.1}

The text goes through the model as a document does in the harvest: BOS first, no other special token added, the same
rule for what a token's kind is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from sae.features.text import Vocabulary
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel
from sae.harvest.stream import KINDS, Harvest, Rows
from sae.harvest.traits import refusal, unusable
from sae.runs import Run


class PromptError(ValueError):
    """A prompt cannot be used: empty or too long; the message says what would do."""


def examine(run: Run, lm: LanguageModel, text: str) -> dict[str, Any]:
    """One forward pass over a text, encoded.

    Args:
        run: a finished run; its autoencoder and `lm` may lie on any device.
        lm: the run's language model.
        text: at most the run's context long, BOS included.

    Returns:
        JSON values, one item a token in each list: "tokens" (display strings), "token_ids", "kinds" ("ordinary",
        "bos", "special" or "sink") and "latents" ([{"latent", "value"}, ...], strongest first, zeros left out). The
        autoencoder has learnt from tokens of the kind "ordinary" alone (unless --keep-special was given).

    Raises:
        PromptError: no token, or more than the run's context.
    """
    ids = prompt_ids(lm, text)
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
    kinds = token_rule(run, lm).token_kinds(ids, activations)
    rows = Rows(activations, ids.int(), zeros, torch.arange(len(ids)).int(), kinds)
    with torch.no_grad():
        codes = run.model.encode(run.inputs_of(rows).to(run.model.W_enc.device))
    return {
        "tokens": vocabulary_of(lm.tokenizer).display(ids.numpy()),
        "token_ids": ids.tolist(),
        "kinds": [KINDS[kind] for kind in kinds.tolist()],
        "latents": _strongest_first(codes.rows().flatten(), codes.indices.flatten(), codes.values.flatten(), len(ids)),
    }


def prompt_ids(lm: LanguageModel, text: str) -> Tensor:
    """Token ids of a text as the harvest makes them, int64 [S]: what begins a segment first, once.

    Raises:
        PromptError: the text holds no token.
    """
    # verbose: a text over the model's length is refused by whoever knows the limit
    ids = lm.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
    if not ids:
        raise PromptError(f"prompt: {text!r} holds no token; type a text")
    lead = list(lm.beginning)
    found = torch.tensor(ids if ids[: len(lead)] == lead else [*lead, *ids], dtype=torch.int64)
    rows = lm.traits.embeddings
    if (token := unusable(found, rows)) is not None:
        name = lm.provenance["name"]
        raise PromptError(refusal(lm.tokenizer, token, rows, name=name, where="it is in the prompt"))
    return found


@lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The bytes of every token, read from a tokenizer once."""
    return Vocabulary.of(tokenizer)


def token_rule(run: Run, lm: LanguageModel) -> Harvest:
    """A harvest of this run without documents: only its rule for the kinds of tokens is wanted."""
    rule = Harvest(lm, run.sites, cast(Any, ()), run.settings())
    rule.norm_limits = run.record["harvest"]["norm_limits"]
    return rule


def _strongest_first(token: Tensor, latent: Tensor, value: Tensor, tokens: int) -> list[list[dict[str, Any]]]:
    """Entries of codes (flat, [n] each) as one list a token, strongest first."""
    active = (value > 0).nonzero().squeeze(1)
    order = active[value[active].argsort(descending=True, stable=True)]
    found: list[list[dict[str, Any]]] = [[] for _ in range(tokens)]
    for row, index, strength in zip(token[order].tolist(), latent[order].tolist(), value[order].tolist(), strict=True):
        found[row].append({"latent": index, "value": strength})
    return found
