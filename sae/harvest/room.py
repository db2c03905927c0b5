"""How many contexts a forward pass takes: what `--contexts auto` finds.

    room = find_room(forward, sites, vocabulary=50_257, spare=4 << 30)
    room.contexts, room.line()

On a GPU the largest number whose pass fits into the memory that is left, found by trying, for a larger pass keeps the
device busier. On a CPU up to 4,096 tokens, as far as an estimate of their memory allows.

Letters: B contexts, S tokens in a context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from sae.base.device import available_memory
from sae.config import ConfigError
from sae.data.packing import Contexts, Cursor
from sae.harvest.forward import Forward
from sae.harvest.sites import Site

MOST_TOKENS = {"cuda": 131_072, "cpu": 4096}
"""Tokens of a forward pass beyond which none is tried, by the kind of device."""
SHARE = {"cuda": 0.9, "cpu": 0.25}
"""Share of the free memory that a pass may take; on a CPU others use it too."""
PARTS = 8
"""The number is found up to an eighth."""


class Room(NamedTuple):
    """The number of contexts in a forward pass, and what set it."""

    contexts: int
    why: str
    """A clause."""

    def line(self) -> str:
        """One line for the user."""
        return f"--contexts auto: {self.contexts} contexts in a forward pass ({self.why})."


def find_room(forward: Forward, sites: Sequence[Site], *, vocabulary: int, spare: int = 0) -> Room:
    """The number of contexts for passes of a model on its device.

    Args:
        vocabulary: tokens that the model embeds.
        spare: bytes of the device that must stay free, for what is allocated later.

    Raises:
        ConfigError: not even one context fits.
    """
    device = next(forward.model.parameters()).device
    free = available_memory(device)
    if device.type == "cuda":
        # what torch has reserved and does not use is free as well
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = int(SHARE[device.type] * (free - spare))
    most = max(1, MOST_TOKENS[device.type] // forward.context)
    taken = pass_bytes if device.type == "cuda" else estimated_bytes

    def fits(contexts: int) -> bool:
        try:
            return taken(forward, sites, trial(contexts, forward.context, vocabulary)) <= budget
        except torch.OutOfMemoryError:
            return False

    contexts = largest(fits, most)
    if contexts == 0:
        raise ConfigError(
            f"--contexts auto: a forward pass over one context of {forward.context} tokens takes more than the "
            f"{budget >> 20} MiB that are left for it on the {device.type}; lower --context, --precision or --width"
        )
    if contexts == most:
        return Room(contexts, f"{contexts * forward.context:,} tokens, the most that auto takes")
    return Room(contexts, f"what fits into {budget >> 20:,} MiB of the {device.type}'s memory")


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, up to an eighth; 0 if 1 does not fit."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        if low == most or fits(most):
            return most
        high = most
    while high - low > max(1, low // PARTS):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def trial(contexts: int, context: int, vocabulary: int) -> Contexts:
    """Contexts of one document each, of tokens from the middle of the vocabulary; special ones live at its ends."""
    draw = torch.Generator().manual_seed(0)
    low = vocabulary // 4
    tokens = torch.randint(low, max(vocabulary // 2, low + 1), (contexts, context), generator=draw)
    position = torch.arange(context).repeat(contexts, 1)
    document = torch.arange(contexts)[:, None].expand(contexts, context)
    return Contexts(tokens, document, position, torch.zeros_like(tokens), Cursor())


def pass_bytes(forward: Forward, sites: Sequence[Site], contexts: Contexts) -> int:
    """Bytes of the GPU that a pass and its rows take at their peak.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    captured = forward.whole(contexts, sites)
    # as rows are made: padding left out, and norms in float32
    rows = {name: a.flatten(0, 1).clone() for name, a in captured.items()}
    for a in rows.values():
        a.float().norm(dim=1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def estimated_bytes(forward: Forward, sites: Sequence[Site], contexts: Contexts) -> int:
    """Bytes that a pass takes: captured rows twice, four tensors of its widest layer, and a mask [B, 1, S, S]."""
    embeddings = {id(weight) for weight in _embeddings(forward)}
    matrices = [p for p in forward.model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    widest = max((max(p.shape) for p in matrices), default=1)
    tokens, itemsize = contexts.tokens.numel(), next(forward.model.parameters()).element_size()
    widths = sum(site.width or widest for site in sites)
    return tokens * itemsize * (2 * widths + 4 * widest) + tokens * contexts.tokens.shape[1] * itemsize


def _embeddings(forward: Forward) -> list[torch.Tensor]:
    """Weights of the embedding and the head, whose other side is the vocabulary."""
    weights = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(forward.model, name)()
        except (AttributeError, NotImplementedError):  # what transformers raises for a model without one
            continue
        weights += [] if module is None else list(module.parameters())
    return weights
