"""Keep attention inside each segment of a packed context, for any model transformers loads.

transformers (5.x) notices positions that start again inside a row and cuts attention there, in every attention
implementation and together with sliding windows; no mask has to be given. Families that ignore positions get a mask
[B, 1, S, S] instead, and those that no mask can cut (state-space layers, ALiBi) get one segment per row. Which of
these a model needs is not looked up but tried, on a few random tokens:

    isolation = choose_isolation(model, context=256)
    batches = pack(documents, tokenizer, context=256, batch=16, isolate="pad" if isolation == "pad" else "pack")
    model(**model_inputs(model, next(batches), isolation))

Letters: B contexts in a batch, S tokens in a context.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from sae.data.packing import Contexts, Cursor

Isolation = Literal["positions", "mask", "mask_both", "pad"]
# the cheapest first
ISOLATIONS: tuple[Isolation, ...] = ("positions", "mask", "mask_both", "pad")
# tokens of the trial contexts, where no layer looks back over fewer than a whole context
TRIAL_TOKENS = 32


def segment_mask(position: Tensor, dtype: torch.dtype = torch.bool, *, causal: bool = True) -> Tensor:
    """Mask [B, 1, S, S] that lets a token attend to its own segment (and, if `causal`, to nothing after it).

    Every token attends at least to itself, padding too, so that no row of the softmax is empty.

    Args:
        position: [B, S] int64, 0 where a segment begins.
        dtype: torch.bool gives True = attend; a floating type gives 0 = attend and its lowest value elsewhere, which
            is what eager attention adds to its scores.
    """
    segment = (position == 0).cumsum(1)
    allowed = segment[:, :, None] == segment[:, None, :]
    if causal:
        allowed = allowed.tril()
    allowed = allowed[:, None]
    if dtype == torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=position.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )


def model_inputs(model: Any, contexts: Contexts, isolation: Isolation) -> dict[str, Any]:
    """Keyword arguments for `model(**...)`, on its device: input_ids [B, S] and what `isolation` needs.

    Args:
        model: of transformers, or any of its parts that takes input_ids.
        contexts: from `pack`; with isolation "pad" from `pack(..., isolate="pad")`.
        isolation: from `choose_isolation`.

    Raises:
        ValueError: an unknown isolation.
    """
    if isolation not in ISOLATIONS:
        raise ValueError(f"isolation: {isolation!r} is not one of {', '.join(ISOLATIONS)}")
    weight = next(model.parameters())
    inputs: dict[str, Any] = {"input_ids": contexts.tokens.to(weight.device)}
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        # also what lets transformers look for segments: with a cache it does not
        inputs["use_cache"] = False
    if isolation == "pad":
        inputs["attention_mask"] = (contexts.document >= 0).long().to(weight.device)
        return inputs
    position = contexts.position.to(weight.device)
    if isolation in ("mask", "mask_both"):
        inputs["attention_mask"] = segment_mask(position, weight.dtype, causal=isolation == "mask")
    if "position_ids" in accepted:
        inputs["position_ids"] = position
    return inputs


def choose_isolation(model: Any, context: int) -> Isolation:
    """The cheapest way that keeps segments apart in this model; "pad" always does.

    Args:
        model: of transformers.
        context: tokens in the contexts to come.
    """
    return next(way for way in ISOLATIONS if way == "pad" or isolates_documents(model, context, way))


@torch.no_grad()
def isolates_documents(model: Any, context: int, isolation: Isolation) -> bool:
    """Whether a segment's hidden states in a packed context are those of the segment alone.

    Tries random tokens: one context of two segments, one of a single segment. The second catches masks that replace
    a sliding window instead of being added to it, so where the model has a window the trial is a whole context long.

    Args:
        model: of transformers; its last hidden states (without the head) are compared.
        context: tokens in the contexts to come.
        isolation: "positions", "mask" or "mask_both".
    """
    # the head is not needed, and is most of a small model's work
    model = getattr(model, "base_model", model)
    length = context if _least_window(model) < context else min(context, TRIAL_TOKENS)
    cut = length // 3
    words = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    # from the middle of the vocabulary: special tokens live at its ends
    tokens = torch.randint(words // 4, max(words // 2, words // 4 + 1), (2, length), generator=draw)
    position = torch.arange(length).repeat(2, 1)
    position[0, cut:] -= cut
    packed = Contexts(tokens, torch.zeros_like(tokens), position, Cursor())
    training = model.training
    model.eval()
    try:
        alone = [
            _hidden(model, {"input_ids": row[None].to(next(model.parameters()).device)})
            for row in (tokens[0, :cut], tokens[0, cut:], tokens[1])
        ]
        try:
            inputs = model_inputs(model, packed, isolation)
            if isolation == "positions" and "position_ids" not in inputs:
                return False
            together = _hidden(model, inputs)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False  # the family does not take inputs of this form
    finally:
        model.train(training)
    pairs = zip((together[:1, :cut], together[:1, cut:], together[1:]), alone, strict=True)
    return all(_same(ours, theirs) for ours, theirs in pairs)


def _hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs)[0]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding: a few hundred times the type's epsilon, relative, root mean square."""
    # kept apart segments still go through other matrix shapes, so bits may differ
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(ours.dtype, 3e-2)
    ours, theirs = ours.float(), theirs.float()
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= tolerance * theirs.norm())


def _least_window(model: Any) -> float:
    """The shortest distance over which any layer's attention is cut, by the config; infinite where none is."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    sizes = [
        value
        for name, value in config.to_dict().items()
        if ("window" in name or "chunk" in name or name == "local_attention") and type(value) is int and value > 0
    ]
    return min(sizes, default=float("inf"))
