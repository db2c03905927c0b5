"""For every latent the best events by a key, in bounded memory: the one routine behind all kinds of examples.

A buffer's final content depends on the set of events alone, not on their order, batches or processes: the best
by (key, document, position), a total order. Three keys are used (see `KEYS`): the value; a random number, which makes
a uniform sample and a bottom-k sketch (Broder 1997); and value over random number, which makes a priority sample
(Duffield, Lund and Thorup 2007), in which strong events are frequent.

Letters: F latents, S slots a latent, E events, W tokens in a window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae.features.store import keys, windows

NAMES = ("top", "uniform", "weighted")
SLOTS = {"top": 32, "uniform": 32, "weighted": 64}
EMPTY = -1
"""The place of a free slot."""
_WORST = torch.iinfo(torch.int64).min
_ROWS_AT_ONCE = 4096  # latents merged together, so that scratch memory stays bounded


class Events(NamedTuple):
    """Firings of latents, sorted by latent; the largest number of one latent's events is at most S."""

    latent: Tensor
    """int64 [E]"""
    place: Tensor
    """int64 [E], see `keys.pack`"""
    value: Tensor
    """float32 [E], more than 0"""
    window: Tensor
    """uint8 [E, W], see `windows`"""


def key_of(name: str, value: Tensor, place: Tensor, seed: int) -> Tensor:
    """Keys of events as int64, larger is better; -2^63 where the slot is free. Positive floats sort like their bits.

    top: the value. uniform: -u. weighted: value / u, in float64.
    """
    if name == "top":
        key = value.view(torch.int32).long()
    else:
        key = ~keys.order(place, seed)
        if name == "weighted":
            key = (value.double() / keys.uniform(~key)).view(torch.int64)
    return torch.where(place == EMPTY, _WORST, key)


class Buffer:
    """The S best events of each of F latents by one key; `top` keeps one event a document."""

    def __init__(self, name: str, width: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.name, self.seed, self.slots = name, seed, SLOTS[name]
        self.place = torch.full((width, self.slots), EMPTY, dtype=torch.int64, device=device)
        self.value = torch.zeros(width, self.slots, device=device)
        self.window = torch.zeros(width, self.slots, windows.WIDTH, dtype=torch.uint8, device=device)
        self.threshold = torch.full((width,), _WORST, dtype=torch.int64, device=device)
        """Events with a lower key cannot enter; int64 [F]."""

    def candidates(self, latent: Tensor, place: Tensor, value: Tensor) -> Tensor:
        """Which of E events could enter, at most S of a latent; indices int64, sorted by latent, best first.

        The events are sorted by (latent, place).
        """
        key = key_of(self.name, value, place, self.seed)
        picked = (key >= self.threshold[latent]).nonzero().squeeze(1)
        key, latent = key[picked], latent[picked]
        # stable sorts: of equal keys the earlier place stays first
        by_key = key.sort(descending=True, stable=True).indices
        by_key = by_key[latent[by_key].sort(stable=True).indices]
        if self.name == "top":
            by_key = by_key[_first_of_document(latent[by_key], keys.document_of(place[picked[by_key]]))]
        latent = latent[by_key]
        return picked[by_key[_rank_in_group(latent) < self.slots]]

    def absorb(self, events: Events) -> None:
        """Merge events into the buffers of their latents."""
        if not len(events.latent):
            return
        touched, counts = torch.unique_consecutive(events.latent, return_counts=True)
        begins = counts.cumsum(0) - counts
        # latents with equally many new events together, so that their rectangle has little padding
        by_count = counts.sort(descending=True).indices
        for rows in by_count.split(_ROWS_AT_ONCE):
            self._merge(touched[rows], begins[rows], counts[rows], events)

    def _merge(self, latent: Tensor, begin: Tensor, count: Tensor, events: Events) -> None:
        """Merge the events begin : begin + count, [R] each, into the rows `latent` [R]."""
        columns = torch.arange(int(count.max()), device=latent.device)
        listed = columns < count.unsqueeze(1)
        index = torch.where(listed, begin.unsqueeze(1) + columns, begin.unsqueeze(1))
        place = torch.cat([self.place[latent], torch.where(listed, events.place[index], EMPTY)], 1)
        value = torch.cat([self.value[latent], events.value[index]], 1)
        key = key_of(self.name, value, place, self.seed)
        if self.name == "top":
            key[_worse_of_document(key, place, self.slots)] = _WORST
        kept, threshold = _best(key, place, self.slots)
        old, new = kept[:, : self.slots], kept[:, self.slots :]
        # the n-th new event of a row goes to its n-th free slot: both are listed in the order of rows
        free = ~old & ((~old).cumsum(1) <= new.sum(1, keepdim=True))
        row, slot = free.nonzero(as_tuple=True)
        source = index[new]
        row = latent[row]
        self.place[row, slot] = events.place[source]
        self.value[row, slot] = events.value[source]
        self.window[row, slot] = events.window[source]
        self.threshold[latent] = threshold

    def events(self, begin: int = 0, end: int | None = None) -> Events:
        """All events of the latents begin : end, sorted by latent, each latent's best first."""
        places = self.place[begin:end]
        row, slot = (places != EMPTY).nonzero(as_tuple=True)
        place, value = places[row, slot], self.value[begin:end][row, slot]
        key = key_of(self.name, value, place, self.seed)
        by = place.sort().indices
        by = by[key[by].sort(descending=True, stable=True).indices]
        by = by[row[by].sort(stable=True).indices]
        return Events(row[by] + begin, place[by], value[by], self.window[begin:end][row[by], slot[by]])

    def documents(self) -> set[int]:
        """The documents that events stand in."""
        documents: set[int] = set()
        for places in self.place.split(_ROWS_AT_ONCE):
            documents.update(keys.document_of(places).unique().tolist())
        return documents - {EMPTY}


def _best(key: Tensor, place: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The best `slots` entries of each row of keys [R, M], as bool, and the worst key among them [R] in a full row.

    Free entries are never among them. Of equal keys the earlier place is better.
    """
    worst = key.topk(slots, dim=1, sorted=False).values.amin(1)
    kept = (key >= worst.unsqueeze(1)) & (key > _WORST)
    crowded = (kept.sum(1) > slots).nonzero().squeeze(1)
    if len(crowded):  # more equal keys than free slots
        k, p = key[crowded], place[crowded]
        by = p.sort(dim=1, stable=True).indices
        by = by.gather(1, k.gather(1, by).sort(dim=1, descending=True, stable=True).indices)
        kept[crowded] = torch.zeros_like(k, dtype=torch.bool).scatter(1, by[:, :slots], True)
    return kept, worst


def _worse_of_document(key: Tensor, place: Tensor, slots: int) -> Tensor:
    """Entries [R, M] whose row has a better one of the same document; the first `slots` differ, and so do the rest."""
    document = keys.document_of(place)  # a free slot's is -1
    same = (document[:, :slots].unsqueeze(2) == document[:, slots:].unsqueeze(1)) & (place[:, :slots] >= 0).unsqueeze(2)
    row, old, new = same.nonzero(as_tuple=True)
    new = new + slots
    old_key, new_key = key[row, old], key[row, new]
    old_wins = (old_key > new_key) | ((old_key == new_key) & (place[row, old] <= place[row, new]))
    worse = torch.zeros_like(place, dtype=torch.bool)
    worse[row, torch.where(old_wins, new, old)] = True
    return worse


def _first_of_document(latent: Tensor, document: Tensor) -> Tensor:
    """Indices, ascending, of the first entry of each (latent, document); entries are sorted by latent, best first."""
    by = document.sort(stable=True).indices
    by = by[latent[by].sort(stable=True).indices]
    l, d = latent[by], document[by]  # noqa: E741
    first = torch.ones_like(l, dtype=torch.bool)
    first[1:] = (l[1:] != l[:-1]) | (d[1:] != d[:-1])
    return by[first].sort().values


def _rank_in_group(group: Tensor) -> Tensor:
    """Place of each entry in its run of equal numbers, from 0; `group` is sorted."""
    counts = torch.unique_consecutive(group, return_counts=True)[1]
    begins = counts.cumsum(0) - counts
    return torch.arange(len(group), device=group.device) - begins.repeat_interleave(counts)
