"""The kinds of tokens that a harvest tells apart.

with_sinks(kind, {"resid_post.9": activations}, {"resid_post.9": 120.0})      # int8 [n], SINK where a norm is over 120
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ORDINARY, BOS, SPECIAL, SINK, OTHER_ROLE = range(5)
KINDS = ("ordinary", "bos", "special", "sink", "other_role")


def kinds_of(token: Tensor, beginning: Tensor, special: Tensor, wanted: Tensor | None, *, keep_special: bool) -> Tensor:
    """Kinds int8 [n] by token and role alone, without sinks.

    Args:
        token: ids [n].
        beginning: ids that begin every segment.
        special: ids of special tokens.
        wanted: bool [n], whether a token is of a role that is trained on; None where all are.
        keep_special: whether special tokens of the wanted roles are trained on; else they are left out as special.
    """
    kind = torch.full(token.shape, ORDINARY, dtype=torch.int8)
    kind[torch.isin(token, special)] = SPECIAL
    kind[torch.isin(token, beginning)] = BOS
    if wanted is not None:
        others = ~wanted & ((kind == ORDINARY) | (keep_special & (kind != BOS)))
        kind[others] = OTHER_ROLE
    return kind


def with_sinks(kind: Tensor, activations: Mapping[str, Tensor], limits: Mapping[str, float]) -> Tensor:
    """The kinds [n] with SINK for ordinary tokens whose norm exceeds the limit at some site."""
    kind = kind.clone()
    for name, limit in limits.items():
        over = (activations[name].float().norm(dim=1) > limit).cpu()
        kind[over & (kind == ORDINARY)] = SINK
    return kind
