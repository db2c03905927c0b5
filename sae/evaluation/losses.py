"""Next-token losses from last hidden states, a few rows at a time: no array of all tokens by the whole vocabulary.

Memory for logits is at most `ARRAYS` arrays of `LOGITS` float32 numbers (320 MiB), whatever the tokens, the vocabulary
(up to `LOGITS` words) and the number of passes compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

LOGITS = 1 << 24
"""Numbers in one array of logits."""
ARRAYS = 5  # clean log-probabilities, a pass's logits in the model's dtype and in float32, its log-probabilities, spare
CACHED = 1 << 19  # numbers that stay in a core's cache while they are summed


@torch.no_grad()
def losses(
    logits: Callable[[Tensor], Tensor],
    clean: Tensor,
    passes: Mapping[str, Tensor],
    following: Tensor,
    *,
    divergences: Collection[str] = (),
) -> dict[str, Tensor]:
    """Cross-entropies and divergences of the next token, nats, float32 [n] each.

    Args:
        logits: the head, rows [m, d] -> logits [m, V].
        clean: what it reads of the clean pass, at the n tokens that count [n, d].
        passes: the same of other passes, by name.
        following: ids of the next tokens [n].
        divergences: names of the passes whose KL from the clean one is wanted.

    Returns:
        "clean" and every pass's name -> cross-entropies; "kl." and a name in `divergences` -> KL(clean || pass).
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in ("clean", *passes, *(f"kl.{name}" for name in divergences))}
    # the first row tells the width of the vocabulary
    at_once = max(1, LOGITS // logits(clean[:1]).shape[1]) if len(clean) else 1
    for rows in torch.arange(len(clean), device=clean.device).split(at_once):
        words = following[rows].unsqueeze(1)
        log_p = logits(clean[rows]).float().log_softmax(-1)
        parts["clean"].append(-log_p.gather(1, words).squeeze(1))
        for name, hidden in passes.items():
            log_q = logits(hidden[rows]).float().log_softmax(-1)
            parts[name].append(-log_q.gather(1, words).squeeze(1))
            if name in divergences:
                parts[f"kl.{name}"].append(divergence(log_p, log_q))
            del log_q
    return {name: torch.cat(some) if some else clean.new_zeros(0).float() for name, some in parts.items()}


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row [n] of log-probabilities [n, V]."""
    at_once = max(1, CACHED // log_p.shape[1])
    parts = zip(log_p.split(at_once), log_q.split(at_once), strict=True)
    return torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in parts])
