"""Forward passes over packed contexts: documents kept apart, in as many parts as the device's memory asks for.

forward = Forward(lm.model, choose_attention(lm.model, context=256), context=256, tell=print)
forward.captured(contexts, sites)["resid_post.9"]      # [B, S, d]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.data.isolation import model_inputs
from sae.data.packing import Contexts
from sae.harvest.attention import Attention
from sae.harvest.hooks import harvest_forward
from sae.harvest.rows import ActivationError
from sae.harvest.sites import Site


class Forward:
    """Activations of a model by one route of attention.

    Args:
        model: of transformers.
        attention: how documents are kept apart.
        context: tokens of a context, for messages.
        tell: receives a line where memory is too small.
    """

    def __init__(self, model: Any, attention: Attention, *, context: int, tell: Callable[[str], None]) -> None:
        self.model, self.attention, self.context, self.tell = model, attention, context, tell
        self.at_once: int | None = None
        """Contexts in a forward pass, where a whole batch did not fit."""

    def inputs(self, contexts: Contexts) -> dict[str, Any]:
        """Keyword arguments of the model's forward for these contexts, documents kept apart."""
        return model_inputs(self.model, contexts, self.attention.isolation)

    def whole(self, contexts: Contexts, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Site name -> activations [B, S, d], in one forward pass.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        with self.attention.applied():
            return harvest_forward(self.model, self.inputs(contexts), sites)

    def captured(self, contexts: Contexts, sites: Sequence[Site]) -> dict[str, Tensor]:
        """The same in several forward passes where the device's memory is too small for one.

        The contexts of a batch do not see each other, so rows and their order stay the same. What did not fit once is
        not tried again.

        Raises:
            ActivationError: not even one context fits.
        """
        batch = len(contexts.tokens)
        while True:
            at_once = min(batch, self.at_once or batch)
            try:
                parts = [self.whole(contexts.part(i, i + at_once), sites) for i in range(0, batch, at_once)]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            except torch.OutOfMemoryError as error:
                if at_once == 1:
                    raise ActivationError(
                        f"out of memory in a forward pass over one context of {self.context} tokens; lower --context, "
                        "or --precision"
                    ) from error
                self.at_once = at_once // 2
                self.tell(f"Out of memory with {at_once} contexts in a forward pass: from now on {self.at_once}.")
            # outside the handler, where the failed pass's tensors are no longer referred to
            torch.cuda.empty_cache()
