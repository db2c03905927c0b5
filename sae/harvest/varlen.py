"""Attention over segments of varying length (flash attention's varlen kernel), as an implementation of transformers.

    configuration._attn_implementation = VARLEN        # within `Attention.applied`

transformers asks an implementation for its mask, and hands that to every layer. Here the mask is a list of where
segments begin: each segment is a causal sequence of its own, and nothing of size S x S exists. The kernel is torch's
(`torch.nn.attention.varlen`), which runs on GPUs in half precision. On a CPU each segment goes through
`scaled_dot_product_attention` by itself, in any precision.

Letters: B contexts, S tokens in a context, H heads, T = B * S tokens, n segments.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

VARLEN = "sparsight_varlen"
"""Name of the implementation."""
HALF = (torch.float16, torch.bfloat16)
NOT_IN_KERNEL = ("softcap", "s_aux", "position_bias")
"""Arguments of attention that change its scores in ways the kernel does not know: capped scores, sinks, biases."""


class UnsupportedError(ValueError):
    """The model asks for attention that a route cannot compute; the message is a clause that says what."""


class Segments(NamedTuple):
    """Where segments begin in B contexts laid end to end."""

    begins: Tensor
    """int32 [n + 1] on the model's device: the first token of each segment, then T."""
    lengths: list[int]
    """Tokens of each segment."""
    window: int | None
    """Tokens that a token looks back over, itself included; None where it sees its whole segment."""


def segments_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **more: Any,
) -> Segments:
    """What transformers hands to layers as their mask; see `AttentionMaskInterface` for the arguments.

    A segment, or a chunk of chunked attention, begins at a token that does not see the one before it.

    Raises:
        UnsupportedError: the pass is not one over whole contexts without padding.
    """
    if q_length != kv_length or q_offset or kv_offset or attention_mask is not None or use_vmap:
        raise UnsupportedError("the model reads with a cache, padding or a mask of its own")
    assert mask_function is not None
    context = torch.arange(batch_size, device=device)[:, None]
    token = torch.arange(1, q_length, device=device)[None]
    begins = torch.ones(batch_size, q_length, dtype=torch.bool)
    begins[:, 1:] = ~mask_function(context, 0, token, token - 1).expand(batch_size, q_length - 1).cpu()
    first = torch.cat([begins.flatten().nonzero().squeeze(1), torch.tensor([begins.numel()])])
    return Segments(first.int().to(device), first.diff().tolist(), local_size)


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention [B, S, H, d] of queries [B, H, S, d], keys and values [B, H or fewer, S, d], within each segment.

    Raises:
        UnsupportedError: the layer asks for more than softmax(q k^T * scale) v.
    """
    for name in NOT_IN_KERNEL:
        if more.get(name) is not None:
            raise UnsupportedError(f"its attention has {name}")
    if not isinstance(attention_mask, Segments) or dropout or more.get("is_causal") is False:
        raise UnsupportedError("its attention is not causal, or has dropout")
    contexts, _, tokens, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    attend = _kernel if query.is_cuda else _one_by_one
    return attend(q, k, v, attention_mask, scaling).unflatten(0, (contexts, tokens)), None


def _kernel(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Attention [T, H, d] by torch's varlen kernel."""
    if q.dtype not in HALF:
        raise UnsupportedError(
            f"the kernel computes in float16 and bfloat16, the model in {q.dtype}".replace("torch.", "")
        )
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters(varlen_attn)
    settings: dict[str, Any] = {} if scale is None else {"scale": scale}
    longest = max(segments.lengths)
    window = None if segments.window is None or segments.window >= longest else segments.window
    if "window_size" in known:
        settings["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        settings["is_causal"] = True
    else:
        raise UnsupportedError("this torch's kernel knows no sliding window")
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in known:
            settings["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = varlen_attn(q, k, v, segments.begins, segments.begins, longest, longest, **settings)
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """The same, a segment at a time."""
    parts = []
    for one in zip(*(x.transpose(0, 1).split(segments.lengths, dim=1) for x in (q, k, v)), strict=True):
        tokens, window = one[0].shape[1], segments.window
        mask = None
        if window is not None and window < tokens:
            mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(1 - window)
        # the leading axis is what the fast kernels of a CPU ask for
        query, key, value = (x[None] for x in one)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=len(one[1]) != len(one[0]),
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, segments_mask)  # pyright: ignore[reportArgumentType]  it is handed on as it is
