"""Collection: everything kept of the latents while a corpus goes by, in bounded memory, whatever the order.

    collection = Collection(width=4608, seed=0)
    collection.add(codes, tokens)           # codes of n tokens, and where those tokens stand
    collection.merge(another)               # shards of one corpus, in any order
    collection.finish()

Letters: F latents, n tokens, E firings, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.features.store import keys, windows
from sae.features.store.buffers import NAMES, Buffer, Events
from sae.features.store.documents import DocumentTokens, Tokens
from sae.features.store.keys import FeatureError
from sae.features.store.statistics import LARGEST, Statistics
from sae_kernels import SparseCodes

LEFT_OUT = ("bos", "special", "sink")
FLUSH = 1 << 18  # firings processed together: large enough that a latent's row is touched seldom
_CARRY = 1 << 30
_WINDOWS_AT_ONCE = 32_768
_LATENTS_AT_ONCE = 4096
_APART = 2 * windows.WIDTH  # further than any window reaches


class Collection:
    """Statistics and buffers of F latents, and the documents that the buffers' events stand in."""

    def __init__(self, width: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.width, self.seed, self.device = width, seed, torch.device(device)
        self.statistics = Statistics(width, device)
        self.buffers = {name: Buffer(name, width, seed, device) for name in NAMES}
        self.documents = DocumentTokens()
        self.tokens = 0
        """Tokens whose codes were added."""
        self.left_out: dict[str, int] = dict.fromkeys(LEFT_OUT, 0)
        """Tokens left out, by kind."""
        self._waiting: list[tuple[SparseCodes, Tokens]] = []
        self._firings = self._since_carry = 0

    def add(self, codes: SparseCodes, tokens: Tokens, text: Tokens | None = None) -> None:
        """Take in the codes of tokens, which make up whole segments except for tokens that were left out.

        Args:
            codes: of n tokens over F latents; zeros may be listed, values are never negative.
            tokens: where those n tokens stand.
            text: the same segments with the tokens left out, for showing; by default `tokens`.

        Raises:
            FeatureError: a value is not finite, negative or over 2^63; or the shapes differ.
        """
        if codes.width != self.width or codes.tokens != len(tokens.token):
            raise FeatureError(
                f"codes of {codes.tokens} tokens over {codes.width} latents; expected {len(tokens.token)} tokens over "
                f"{self.width} latents"
            )
        values = codes.values
        if values.numel() and not (bool(values.amin() >= 0) and bool(values.amax() <= LARGEST)):
            raise FeatureError("codes: a value is negative, not finite or over 2^63; the weights may be damaged")
        self.documents.add(tokens if text is None else text)
        self.tokens += codes.tokens
        self._waiting.append((codes, tokens))
        self._firings += values.numel()
        if self._firings >= FLUSH:
            self.flush()

    def leave_out(self, kind: str, count: int) -> None:
        """Count tokens of a kind that is not collected: one of `LEFT_OUT`, or of a role that the run leaves out."""
        self.left_out[kind] = self.left_out.get(kind, 0) + count

    def merge(self, other: Collection) -> None:
        """Take in what another collection of the same latents and seed saw of other segments."""
        if (other.width, other.seed) != (self.width, self.seed):
            raise FeatureError(
                f"cannot merge {other.width} latents of seed {other.seed} into {self.width} of seed {self.seed}"
            )
        self.flush()
        other.flush()
        mine, theirs = self.statistics, other.statistics
        for name in ("count", "sums", "squares", "histogram"):
            getattr(mine, name).add_(getattr(theirs, name).to(self.device))
        mine.carry()
        for name, buffer in self.buffers.items():
            for begin in range(0, self.width, _LATENTS_AT_ONCE):
                events = other.buffers[name].events(begin, begin + _LATENTS_AT_ONCE)
                buffer.absorb(Events(*(t.to(self.device) for t in events)))
        self.documents.merge(other.documents)
        self.tokens += other.tokens
        for kind, count in other.left_out.items():
            self.leave_out(kind, count)

    def finish(self, open_document: int | None = None) -> None:
        """Process what waits, and forget documents that no event stands in.

        Adding may go on afterwards with other documents, and with `open_document`, which is kept.
        """
        self.flush()
        self.statistics.carry()
        needed = set().union(*(buffer.documents() for buffer in self.buffers.values()))
        self.documents.keep(needed if open_document is None else needed | {open_document})

    def to(self, device: torch.device | str) -> Collection:
        """A copy of a finished collection on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        copy = Collection(self.width, self.seed, device)
        copy.merge(self)
        return copy

    def flush(self) -> None:
        """Process the codes that wait."""
        waiting, self._waiting, self._firings = self._waiting, [], 0
        if not waiting:
            return
        tokens = Tokens(*(torch.cat(parts).to(self.device) for parts in zip(*(t for _, t in waiting), strict=True)))
        latent, row, value = _firings([codes for codes, _ in waiting])
        if not len(latent):
            return
        place, by = _in_order(keys.pack(tokens.document, tokens.position))
        line = _on_a_line(place, keys.pack(tokens.document, tokens.start)[by])
        rank = torch.empty_like(by).scatter_(0, by, torch.arange(len(by), device=by.device))
        row = rank[row]
        # one number for a firing, which sorts by latent, document, position, and tells how far apart two of them are
        spot, by = (latent * (int(line[-1]) + _APART) + line[row]).sort()
        latent, row, value = latent[by], row[by], value[by]
        self._since_carry += len(latent)
        if self._since_carry > _CARRY:
            self.statistics.carry()
            self._since_carry = 0
        self.statistics.add(latent, value)
        place = place[row]
        chosen = {name: b.candidates(latent, place, value) for name, b in self.buffers.items()}
        wanted = torch.zeros_like(latent, dtype=torch.bool)
        wanted[torch.cat(list(chosen.values()))] = True
        number = wanted.cumsum(0) - 1
        wanted = wanted.nonzero().squeeze(1)
        window = torch.cat([windows.encode(_around(spot, value, c), value[c]) for c in wanted.split(_WINDOWS_AT_ONCE)])
        for name, buffer in self.buffers.items():
            c = chosen[name]
            buffer.absorb(Events(latent[c], place[c], value[c], window[number[c]]))


def _firings(batches: list[SparseCodes]) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries of several batches: latents, rows (counted through) and values (float32), [E] each."""
    latents, rows, values, begin = [], [], [], 0
    for codes in batches:
        value = codes.values.detach()
        positive = (value > 0).flatten().nonzero().squeeze(1)
        latents.append(codes.indices.flatten()[positive])
        rows.append(codes.rows().flatten()[positive] + begin)
        values.append(value.flatten()[positive].float())
        begin += codes.tokens
    return torch.cat(latents), torch.cat(rows), torch.cat(values)


def _in_order(place: Tensor) -> tuple[Tensor, Tensor]:
    """Places in ascending order, so that ties are broken by document and position, and their indices.

    Raises:
        FeatureError: a place occurs twice.
    """
    ordered, by = place.sort()
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise FeatureError("tokens: two of them stand at the same document and position")
    return ordered, by


def _on_a_line(place: Tensor, segment: Tensor) -> Tensor:
    """A coordinate of each token, ascending: steps inside a segment are those of the positions, between two _APART."""
    steps = place.diff(prepend=place[:1])
    steps[1:][segment[1:] != segment[:-1]] = _APART
    return steps.cumsum(0)


def _around(spot: Tensor, value: Tensor, chosen: Tensor) -> Tensor:
    """The latents' activations [C, WIDTH] in the windows around the chosen firings, 0 where silent.

    Firings are sorted by `spot`, so that those in a window are neighbours of the chosen one in the list.
    """
    columns = torch.arange(-windows.BACK, windows.AHEAD + 1, device=chosen.device)
    # an index beyond an end stands for the first or last firing, which is then written twice at its own distance
    near = (chosen.unsqueeze(1) + columns).clamp_(0, len(spot) - 1)
    column = spot[near].sub_(spot[chosen].unsqueeze(1)).add_(windows.BACK)
    column.masked_fill_((column < 0) | (column >= windows.WIDTH), windows.WIDTH)
    around = torch.zeros(len(chosen), windows.WIDTH + 1, device=chosen.device)
    return around.scatter_(1, column, value[near])[:, : windows.WIDTH]
