"""The cost of symbols under an ideal entropy coder that learned every latent's histogram from training samples.

    model = SymbolModel(training_symbols, training_codes)
    bits, unseen = model.bits(symbols)                      # bits of every sample [n]
    model.levels(symbols, widths)                           # the values that symbols decode to

Symbols are whole numbers as sparse COO tensors [n, F]; those that are not listed are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SymbolModel:
    """p(s) = c_s / (n + d), c_s of the latent's n training symbols being s, and d the number of different ones.

    The rest, d / (n + d), is the probability of an escape, after which the symbol follows in a universal code
    (`gamma_bits`): every integer has a finite length, and the lengths are those of a prefix code. This is method C of
    Moffat 1990 ("Witten-Bell"); unlike adding one to each of thousands of possible bins, it costs a latent that rarely
    fires next to nothing.

    Args:
        symbols: of training samples [n, F]; zeros may be listed.
        codes: theirs before quantisation [n, F], of the same indices.
    """

    def __init__(self, symbols: Tensor, codes: Tensor) -> None:
        numbers, (_, latents), values = symbols.values().long(), symbols.indices(), codes.values().double()
        on, (samples, width) = numbers != 0, symbols.shape
        small = torch.bincount(latents[~on], values[~on], minlength=width)
        numbers, latents = numbers[on], latents[on]
        self.low = int(numbers.min()) if len(numbers) else 0
        self.span = int(numbers.max()) - self.low + 1 if len(numbers) else 1
        self.keys, inverse, self.counts = torch.unique(
            latents * self.span + (numbers - self.low), return_inverse=True, return_counts=True
        )
        owner = self.keys // self.span
        self.sums = torch.zeros(len(self.keys), dtype=torch.float64).index_add_(0, inverse, values[on])
        zeros = samples - torch.bincount(latents, minlength=width)
        self.zero_levels = small.double() / (zeros + 1)
        different = torch.bincount(owner, minlength=width) + (zeros > 0)
        total = (samples + different).double()
        self.lengths = (total[owner] / self.counts).log2()
        self.escape = (total / different).log2()
        zero = (total / zeros.clamp_min(1)).log2()
        self.zero = torch.where(zeros > 0, zero, self.escape + gamma_bits(torch.zeros(1)))

    def bits(self, symbols: Tensor) -> tuple[Tensor, int]:
        """Bits of every sample, float64 [m], and the number of symbols that training samples didn't have."""
        rows, latents, numbers, place, known = self._find(symbols)
        cost = self.escape[latents] + gamma_bits(numbers)
        cost[known] = self.lengths[place]
        whole = self.zero.sum().repeat(len(symbols))
        return whole.index_add_(0, rows, cost - self.zero[latents]), int((~known).sum())

    def levels(self, symbols: Tensor, width: Tensor) -> Tensor:
        """The values that symbols decode to, dense float64 [m, F]; a latent's bins are `width` [F] wide.

        A value is the mean of the training codes in the bin with the bin's middle counted as one more, so that a single
        code isn't taken for the mean.
        """
        rows, latents, numbers, place, known = self._find(symbols)
        levels = numbers * width[latents].double()
        levels[known] = (self.sums[place] + levels[known]) / (self.counts[place] + 1)
        return self.zero_levels.repeat(len(symbols), 1).index_put_((rows, latents), levels)

    def _find(self, symbols: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rows, latents and numbers of the symbols other than 0; places of those that training had, and a mask."""
        on = symbols.values() != 0
        (rows, latents), numbers = symbols.indices()[:, on], symbols.values()[on].long()
        keys = latents * self.span + (numbers - self.low)
        # within the range no key is another latent's
        known = (numbers >= self.low) & (numbers < self.low + self.span) & torch.isin(keys, self.keys)
        return rows, latents, numbers, torch.searchsorted(self.keys, keys[known]), known


def gamma_bits(symbols: Tensor) -> Tensor:
    """Bits of whole numbers in Elias' gamma code (1975), float64: 2 floor(log2 i) + 1, the i-th of 0, 1, -1, 2 ..."""
    number = torch.where(symbols == 0, 1, 2 * symbols.abs() + (symbols < 0)).double()
    return 2.0 * (torch.frexp(number).exponent - 1) + 1
