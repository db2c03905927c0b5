"""Groups of tokens that the language model treats alike, for names such as "tokens like Paris, London, Rome".

groups = token_groups(vectors, ids, strings)      # {token id: "Paris, London, Rome"}

Groups come from k-means on the directions of the tokens' output vectors (spherical k-means, Dhillon and Modha 2001).
A group is named after the three tokens nearest to its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MEMBERS = 16  # tokens in a group, on average
MOST = 1024  # groups
ROUNDS = 8
SHOWN = 3


def token_groups(vectors: Tensor, ids: Sequence[int], string: Callable[[int], str], seed: int = 0) -> dict[int, str]:
    """The group of each token, by name.

    Args:
        vectors: [V, d], a row a token id.
        ids: the tokens to be grouped.
        string: a token's text by its id.
        seed: of the first centres.
    """
    tokens = torch.tensor(sorted(set(ids)), dtype=torch.int64)
    if not len(tokens):
        return {}
    # what all tokens share tells none apart
    rows = vectors[tokens].float()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    count = max(1, min(MOST, len(rows) // MEMBERS))
    draw = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=draw)[:count]]
    nearest = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in rows.split(4096)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        # an empty group keeps its centre
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, centres)
        centres = torch.nn.functional.normalize(centres, dim=1)
    closeness = (rows * centres[nearest]).sum(1)
    members: dict[int, list[int]] = {}
    for index in closeness.argsort(descending=True, stable=True).tolist():
        members.setdefault(int(nearest[index]), []).append(index)
    names = {}
    for group in members.values():
        shown = dict.fromkeys(string(int(tokens[i])).strip().lower() for i in group)
        name = ", ".join([text for text in shown if text][:SHOWN])
        names |= {int(tokens[i]): name for i in group if name}
    return names
