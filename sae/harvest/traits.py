"""What a language model is and can do, determined once for all commands: `LanguageModel.traits`.

    lm = load_language_model(source, device=torch.device("cpu"), precision="auto")
    lm.traits.no_next_token          # None, or the reason why there are no cross-entropies, no steering, no logit lens
    lm.traits.limit                  # tokens that it reads at most

Nothing is looked up by the family's name: the class is the one that the checkpoint was saved with, whether a later
token changes an earlier output is tried, and position tables are found by how a forward reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sae.harvest.blocks import text_modules

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""Names under which configs give the number of positions; transformers maps most of them to the first."""
TRIAL_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """What the commands ask of a language model."""

    has_head: bool
    """Whether the checkpoint holds an output head (tied to the embedding counts); without one it is never run."""
    bidirectional: bool
    """Whether a later token changes an earlier output."""
    no_next_token: str | None
    """Why the model predicts no next token, a clause such as "BertForMaskedLM reads both ways"; None where it does."""
    wraps_text: bool
    """Whether the text model is a part of a larger one (vision-language models)."""
    limit: int | None
    """Tokens in a row that it can read; None where nothing limits them."""
    embeddings: int | None
    """Rows of the token embedding: ids must be below; None where the model has no such table."""
    special: frozenset[int]
    """Ids of the tokenizer's special and control tokens."""

    @property
    def predicts_next(self) -> bool:
        """Whether it has a head and reads from left to right."""
        return self.no_next_token is None


def auto_class(config: Any) -> Any:
    """The class of transformers that loads the model with its head where there is one.

    That is the one the checkpoint was saved with, if it has a head for text; for a bare one the class for masked
    tokens unless the config says that it is a decoder, and the one for images and text if the text model is a part.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForMultimodalLM,
    )

    both = [AutoModelForCausalLM, AutoModelForMaskedLM]
    if not getattr(config, "is_decoder", False):
        both.reverse()
    wrapping = [AutoModelForImageTextToText, AutoModelForMultimodalLM]
    classes = [*wrapping, *both] if wraps_text(config) else [*both, *wrapping]
    classes = [auto for auto in classes if type(config) in auto._model_mapping]
    saved_as = set(getattr(config, "architectures", None) or ())
    for auto in classes:
        # a class of both kinds of models (BERT's) must not decide by its name what the model does
        if auto not in both and auto._model_mapping[type(config)].__name__ in saved_as:
            return auto
    return next(iter(classes), AutoModel)


def wraps_text(config: Any) -> bool:
    """Whether the text model is a part of the model that this config describes."""
    return _text_config(config) is not config


def known_limit(model: nn.Module) -> int | None:
    """Tokens that the model reads at most, as far as its modules and config tell without weights.

    A learned table of positions has rows for that many, less those before its first position (RoBERTa's padding row
    and the ones before, OPT's two). Without a table it is what the config gives.
    """
    lengths = [len_ for _, len_ in _tables(model)]
    config = _text_config(getattr(model, "config", None))
    lengths += [value for name in LENGTHS if type(value := getattr(config, name, None)) is int and value > 0]
    return min(lengths, default=None)


def find_traits(model: nn.Module, tokenizer: Any, *, has_head: bool) -> ModelTraits:
    """Everything, from a loaded model (two forwards of 8 tokens) and its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: of transformers.
        has_head: whether the weights of an output head were read.
    """
    name = type(model).__name__
    embeddings = embedding_rows(model)
    special = special_tokens(tokenizer)
    both_ways, table = _try(model, embeddings, special)
    limits = [length for length in (known_limit(model), table) if length is not None]
    can_generate: Any = getattr(model, "can_generate", None)
    reason = None
    if not has_head:
        reason = f"{name}: the checkpoint holds no output head"
    elif both_ways:
        reason = f"{name} reads both ways"
    elif can_generate is None or not can_generate():
        reason = f"transformers generates no text with {name}"
    return ModelTraits(
        has_head=has_head,
        bidirectional=both_ways,
        no_next_token=reason,
        wraps_text=wraps_text(getattr(model, "config", None)),
        limit=min(limits, default=None),
        embeddings=embeddings,
        special=special,
    )


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the named special tokens, and of those that the tokenizer's list of added tokens flags as special."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    flagged = [index for index, token in added.items() if getattr(token, "special", False)]
    return frozenset([*tokenizer.all_special_ids, *flagged])


def embedding_rows(model: Any) -> int | None:
    """Rows of the token embedding."""
    try:
        return len(model.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError, TypeError):  # as transformers has it for models without such a table
        return None


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tables(model: Any) -> Iterator[tuple[str, int]]:
    """Learned tables of the text model's positions and the tokens that each serves."""
    # towers of pictures and sound have tables of their own
    wraps = wraps_text(getattr(model, "config", None)) and hasattr(model, "get_decoder")
    for path, module in text_modules(model.get_decoder() if wraps else model):
        leaf = path.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("position" in leaf or leaf == "wpe"):
            continue
        offset = getattr(module, "offset", None)
        if offset is None:
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
        yield path, module.num_embeddings - offset


class _Lookups(TorchDispatchMode):
    """Notes every lookup in a table: its rows and the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            self.seen.append((len(args[0]), args[1].detach()))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _try(model: Any, rows: int | None, special: frozenset[int]) -> tuple[bool, int | None]:
    """Whether a later token changes an earlier output, and the tokens that the tables of positions serve.

    A table of positions is one that two rows of tokens read at the same consecutive indices.
    """
    body = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    # from the middle of the vocabulary: padding and other special tokens live at its ends
    words = rows or 2 * TRIAL_TOKENS
    ordinary = [i for i in (*range(words // 2, words), *range(words // 2)) if i not in special]
    first = torch.tensor(ordinary[: TRIAL_TOKENS + 1])
    tokens = torch.stack([first[:-1], torch.cat([first[:-2], first[-1:]])]).to(device)
    lookups = _Lookups()
    with lookups:
        outputs = body(input_ids=tokens)[0].float()
    earlier = outputs[:, : tokens.shape[1] - 1]
    # a fresh encoder's attention changes its outputs by a thousandth; rounding in half precision by a hundredth
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 1e-2
    both_ways = bool((earlier[0] - earlier[1]).norm() > tolerance * earlier[0].norm())
    lengths = []
    for size, indices in lookups.seen:
        if indices.shape[-1:] != tokens.shape[1:]:
            continue
        at = indices.reshape(-1, tokens.shape[1])
        steps = torch.arange(tokens.shape[1], device=at.device)
        if not at.equal(tokens) and bool((at == at[:1, :1] + steps).all()):
            lengths.append(size - int(at[0, 0]))
    return both_ways, min(lengths, default=None)


def unusable(ids: Tensor, rows: int | None) -> int | None:
    """The first of some token ids that the embedding has no row for, or None."""
    beyond = ids[ids >= (math.inf if rows is None else rows)]
    return int(beyond[0]) if len(beyond) else None


def refusal(tokenizer: Any, token: int, rows: int | None, *, name: str, where: str) -> str:
    """The message about a token id that the embedding has no row for.

    Args:
        name: the model, as the user gave it.
        where: how the token comes about, such as "the tokenizer's padding token".
    """
    return (
        f"--model {name}: {tokenizer.convert_ids_to_tokens(token)!r} ({where}) has id {token}, and the embedding has "
        f"{rows} rows; resize it (model.resize_token_embeddings({len(tokenizer)})) and save the model, or take the "
        "token out of the tokenizer"
    )


def too_long(traits: ModelTraits, context: int, name: str) -> str | None:
    """The message about contexts that are longer than the model reads; None if they are not."""
    if traits.limit is None or context <= traits.limit:
        return None
    return f"--context {context}: {name} reads at most {traits.limit} tokens"
