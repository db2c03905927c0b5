"""Keep attention inside each segment of a packed context, for any model transformers loads.

transformers (5.x) notices positions that start again inside a row and cuts attention there, in every attention
implementation and together with sliding windows; no mask has to be given. Families that ignore positions get a mask
[B, 1, S, S] instead, and those that no mask can cut (state-space layers, ALiBi) get one segment per row. Which of
these a model needs is tried on a few random tokens:

    isolation = choose_isolation(model, context=256)
    batches = pack(documents, tokenizer, context=256, batch=16, isolate="pad" if isolation == "pad" else "pack")
    model(**model_inputs(model, next(batches), isolation))

Letters: B contexts in a batch, S tokens in a context.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sae.base.transfer import to_device
from sae.data.packing import Contexts, Cursor

Isolation = Literal["positions", "mask", "mask_both", "pad"]
# the cheapest first
ISOLATIONS: tuple[Isolation, ...] = ("positions", "mask", "mask_both", "pad")


class IsolationError(ValueError):
    """Documents cannot be kept apart in a model, or it cannot read plain tokens at all; the message says why."""


# parts of the names under which configs keep how far a layer looks back, or how many tokens it looks at
WINDOWS = ("window", "chunk", "local_attention", "index_topk", "block_size")
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
    inputs: dict[str, Any] = {"input_ids": to_device(contexts.tokens, weight.device)}
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        # also what lets transformers look for segments: with a cache it does not
        inputs["use_cache"] = False
    if isolation == "pad":
        inputs["attention_mask"] = to_device((contexts.document >= 0).long(), weight.device)
        return inputs
    position = to_device(contexts.position, weight.device)
    if isolation in ("mask", "mask_both"):
        inputs["attention_mask"] = segment_mask(position, weight.dtype, causal=isolation == "mask")
    if "position_ids" in accepted:
        inputs["position_ids"] = position
    return inputs


def choose_isolation(model: Any, context: int) -> Isolation:
    """The cheapest way that keeps segments apart in this model.

    Args:
        model: of transformers.
        context: tokens in the contexts to come.

    Raises:
        IsolationError: the model cannot read plain tokens, gives other values each time, or lets padding change them.
    """
    for way in ISOLATIONS:
        if isolates_documents(model, context, way):
            return way
    raise IsolationError(
        f"{type(model).__name__} computes other hidden states for a document when padding or another document follows "
        "it, whatever mask is given, so its activations would not be the document's own"
    )


def isolates_documents(model: Any, context: int, isolation: Isolation) -> bool:
    """Whether a segment's hidden states in a packed or padded context are those of the segment alone.

    Tries random tokens: one context of two segments, one of a single segment. The second catches masks that replace
    a sliding window instead of being added to it, so where the model has a window the trial is a whole context long.
    With "pad" the first context has one segment, and padding after it.

    Args:
        model: of transformers; its last hidden states (without the head) are compared.
        context: tokens in the contexts to come.
        isolation: one of ISOLATIONS.

    Raises:
        IsolationError: the model cannot read plain tokens, or gives other values each time.
    """
    return compare_isolated(model, context, isolation, contextlib.nullcontext) is True


@torch.no_grad()
def compare_isolated(
    model: Any,
    context: int,
    isolation: Isolation,
    packed: Callable[[], contextlib.AbstractContextManager[Any]],
) -> bool | str:
    """The trial of `isolates_documents`, in which whole contexts go through the model within `packed()`.

    Each segment alone goes through it outside, so that `packed` may set another implementation of attention.

    Returns:
        Whether hidden states are the same; where the model refuses the contexts, what it said.

    Raises:
        IsolationError: the model cannot read plain tokens, or gives other values each time.
    """
    words = _vocabulary(model)
    # the head is not needed, and is most of a small model's work
    model = getattr(model, "base_model", model)
    length = context if _least_window(model) < context else min(context, TRIAL_TOKENS)
    cut = length // 3
    draw = torch.Generator().manual_seed(0)
    # from the middle of the vocabulary: special tokens live at its ends
    tokens = torch.randint(words // 4, max(words // 2, words // 4 + 1), (2, length), generator=draw)
    position = torch.arange(length).repeat(2, 1)
    document = torch.zeros_like(tokens)
    if isolation == "pad":
        document[0, cut:] = -1
        segments = [(0, 0, cut), (1, 0, length)]
    else:
        position[0, cut:] -= cut
        segments = [(0, 0, cut), (0, cut, length), (1, 0, length)]
    trial = Contexts(tokens, document, position, torch.zeros_like(tokens), Cursor())
    training = model.training
    model.eval()
    try:
        alone = [_alone(model, tokens[row : row + 1, begin:end]) for row, begin, end in segments]
        try:
            inputs = model_inputs(model, trial, isolation)
            if isolation == "positions" and "position_ids" not in inputs:
                return False
            with packed():
                together = _hidden(model, inputs)
        except Exception as error:  # families raise many types for inputs that they do not accept
            return " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        model.train(training)
    parts = [together[row : row + 1, begin:end] for row, begin, end in segments]
    return all(_same(ours, theirs) for ours, theirs in zip(parts, alone, strict=True))


def _alone(model: Any, tokens: Tensor) -> Tensor:
    """Hidden states [1, S, d] of one segment by itself."""
    inputs = {"input_ids": tokens.to(next(model.parameters()).device)}
    try:
        hidden, again = _hidden(model, inputs), _hidden(model, inputs)
    except Exception as error:  # families raise many types; the user must learn that it is the model
        said = " ".join(str(error).split()) or type(error).__name__
        raise IsolationError(f"{type(model).__name__} cannot read plain tokens: {said[:300]}") from error
    if not _same(hidden, again):
        raise IsolationError(f"{type(model).__name__} gives other hidden states for the same tokens each time")
    return hidden


def _vocabulary(model: Any) -> int:
    """Tokens that the model embeds; of a part without embeddings of its own, what its config says."""
    try:
        return model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):  # what transformers raises where it finds no embedding
        return model.config.get_text_config().vocab_size


def _hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs)[0]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding: a few hundred times the type's epsilon, relative, root mean square."""
    # isolated segments still go through other matrix shapes, so bits may differ
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(ours.dtype, 3e-2)
    ours, theirs = ours.float(), theirs.float()
    if ours.shape != theirs.shape:
        return False
    # values that are not finite in both are no difference: the harvest reports them with the site and the document
    ours, theirs = (x.masked_fill(~(ours.isfinite() | theirs.isfinite()), 0.0) for x in (ours, theirs))
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


def _least_window(model: Any) -> float:
    """The shortest distance over which any layer's attention is cut, by the config; infinite where none is."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    sizes = [
        size
        for name, value in config.to_dict().items()
        if any(word in name for word in WINDOWS)
        for size in (value if isinstance(value, (list, tuple)) else [value])
        if type(size) is int and size > 0
    ]
    return min(sizes, default=float("inf"))
