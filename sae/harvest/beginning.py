"""What begins every segment of text: decided once for a run, recorded in it, and replayed by every other command.

    beginning = settle(lm, config.harvest, documents)
    lm = lm._replace(beginning=beginning.ids)          # (1,), or () where nothing comes first

`auto` takes what the tokenizer itself puts first. Many tokenizers add nothing although their models were trained with
something in front; there the beginning with the lowest cross-entropy of the text that follows is taken.
"""

from __future__ import annotations

import difflib
import statistics
from typing import Any, NamedTuple

import torch

from sae.config import ConfigError, HarvestConfig
from sae.data.documents import Documents
from sae.data.packing import Contexts, named_ids, pack
from sae.harvest.language_model import LanguageModel, ModelError
from sae.harvest.traits import refusal, unusable

SEGMENTS, TOKENS = 8, 64
"""Segments, and tokens of text in each, on which beginnings are compared."""


class Beginning(NamedTuple):
    """What begins every segment, and why."""

    ids: tuple[int, ...]
    why: str
    """A clause, such as "as its tokenizer has it"."""

    def line(self, tokenizer: Any) -> str:
        """One line for the user."""
        shown = " ".join(tokenizer.convert_ids_to_tokens(list(self.ids))) or "nothing"
        return f"Every segment begins with {shown} ({self.why}); --bos sets another."


def settle(lm: LanguageModel, config: HarvestConfig, documents: Documents) -> Beginning:
    """What `config.bos` asks for.

    Raises:
        ConfigError: the tokenizer has no such token; names near ones.
    """
    if config.bos == "none":
        return Beginning((), "--bos none")
    if config.bos != "auto":
        return Beginning((token_id(lm.tokenizer, config.bos),), "--bos")
    if ids := added_ids(lm.tokenizer):
        return Beginning(ids, "as its tokenizer has it")
    if not lm.traits.predicts_next:
        return Beginning(named_ids(lm.tokenizer), "its tokenizer adds nothing")
    return _measured(lm, documents)


def described(lm: LanguageModel) -> dict[str, Any]:
    """JSON values for the records of a run and a store."""
    return {"ids": list(lm.beginning), "tokens": lm.tokenizer.convert_ids_to_tokens(list(lm.beginning))}


def recorded(record: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids in what `described` gave; BOS, else CLS, for records that are older than it."""
    return tuple(record["ids"]) if record else named_ids(tokenizer)


def token_id(tokenizer: Any, token: str) -> int:
    """The id of a token by its text.

    Raises:
        ConfigError: there is none; names near ones.
    """
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return vocabulary[token]
    special = [str(t) for t in tokenizer.all_special_tokens]
    near = difflib.get_close_matches(token, vocabulary, n=3, cutoff=0.6)
    listed = ", ".join(dict.fromkeys([*near, *special[:5]])) or "no special tokens"
    raise ConfigError(f"--bos {token}: the tokenizer has no such token; expected auto, none, or one such as {listed}")


def added_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that the tokenizer itself puts before a text."""
    plain, whole = tokenizer("x", add_special_tokens=False)["input_ids"], tokenizer("x")["input_ids"]
    for lead in range(len(whole) - len(plain) + 1):
        if whole[lead : lead + len(plain)] == plain:
            return tuple(whole[:lead])
    return ()


def _measured(lm: LanguageModel, documents: Documents) -> Beginning:
    """The candidate with the lowest cross-entropy; the tokenizer's BOS where none is lower by two standard errors."""
    named = named_ids(lm.tokenizer)
    if unusable(torch.tensor(named), lm.traits.embeddings) is not None:
        named = ()
    ends = [getattr(lm.tokenizer, name, None) for name in ("eos_token_id", "unk_token_id", "sep_token_id")]
    rows = lm.traits.embeddings or 0
    others = [(token,) for token in ends if token is not None and token < rows]
    losses = {ids: cross_entropies(lm, documents, ids) for ids in dict.fromkeys([named, (), *others])}
    best = min(losses, key=lambda ids: sum(losses[ids]))
    differences = [a - b for a, b in zip(losses[named], losses[best], strict=True)]
    if best != named:
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("inf")
        if statistics.mean(differences) <= 2 * error:
            best = named
    shown = [
        f"{' '.join(lm.tokenizer.convert_ids_to_tokens(list(ids))) or 'nothing'} {statistics.mean(values):.3f}"
        for ids, values in losses.items()
        if values
    ]
    return Beginning(best, f"its tokenizer adds nothing; cross-entropy of text after {', '.join(shown)}")


@torch.no_grad()
def cross_entropies(lm: LanguageModel, documents: Documents, ids: tuple[int, ...]) -> list[float]:
    """Mean cross-entropy, nats, of the second and later tokens of text in each of a few segments after `ids`.

    Raises:
        ModelError: a token has no row in the model's embedding.
    """
    context = min(TOKENS + len(ids), lm.traits.limit or TOKENS + len(ids))
    batches = pack(documents, lm.tokenizer, context=context, batch=SEGMENTS, beginning=ids, isolate="pad")
    contexts: Contexts | None = next(iter(batches), None)
    if contexts is None:
        return []
    if (token := unusable(contexts.tokens, rows := lm.traits.embeddings)) is not None:
        in_text = bool((contexts.tokens[contexts.document >= 0] == token).any())
        where = "it is in the text" if in_text else "it fills rows"
        raise ModelError(refusal(lm.tokenizer, token, rows, name=lm.provenance["name"], where=where))
    inputs = {"input_ids": contexts.tokens.to(lm.device)}
    inputs["attention_mask"] = (contexts.document >= 0).long().to(lm.device)
    logits = lm.model(**inputs).logits.float().cpu()
    found = []
    for row, (tokens, document) in enumerate(zip(contexts.tokens, contexts.document, strict=True)):
        length = int((document >= 0).sum())
        if length - len(ids) > 1:
            places = slice(len(ids), length - 1)
            target = tokens[len(ids) + 1 : length]
            found.append(torch.nn.functional.cross_entropy(logits[row, places], target).item())
    return found
