"""What symbols cost under an ideal entropy coder that learned every latent's histogram from training samples.

    model = SymbolModel(training_symbols, training_codes.values)
    bits, unseen = model.bits(symbols)                      # bits of every sample [n]
    model.zero_levels, model.levels(symbols, widths)        # what symbols stand for

Symbols are whole numbers held as SparseCodes in CSR; what is not listed is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels import SparseCodes


class SymbolModel:
    """p(s) = c_s / (n + d), c_s of the latent's n training symbols being s, and d the number of different ones.

    The d / (n + d) left over is an escape's, after which the symbol itself follows in a universal code (`gamma_bits`):
    every integer has a finite length, and the lengths are those of a prefix code. This is method C of Moffat 1990
    ("Witten-Bell"); unlike adding one to every bin, it costs a latent that rarely fires, over thousands of possible
    bins, next to nothing.

    Args:
        symbols: of training samples [n, F]; zeros may be listed.
        values: the codes that the listed symbols stand for.
    """

    def __init__(self, symbols: SparseCodes, values: Tensor) -> None:
        on = symbols.values != 0
        numbers, latents = symbols.values[on].long(), symbols.indices[on]
        self.low = int(numbers.min()) if len(numbers) else 0
        self.span = int(numbers.max()) - self.low + 1 if len(numbers) else 1
        keys = latents * self.span + (numbers - self.low)
        self.keys, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        self.counts, owner = counts, self.keys // self.span
        self.sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, inverse, values[on].double())
        zeros = symbols.tokens - torch.bincount(latents, minlength=symbols.width)
        small = torch.bincount(symbols.indices[~on], values[~on].double(), minlength=symbols.width)
        self.zero_levels = small / (zeros + 1)
        different = torch.bincount(owner, minlength=symbols.width) + (zeros > 0)
        total = (symbols.tokens + different).double()
        self.lengths = (total[owner] / counts).log2()
        self.escape = (total / different).log2()
        zero = (total / zeros.clamp_min(1)).log2()
        self.zero = torch.where(zeros > 0, zero, self.escape + gamma_bits(torch.zeros(1)))

    def bits(self, symbols: SparseCodes) -> tuple[Tensor, int]:
        """Bits of every sample, float64 [m], and how many symbols training didn't have; zeros not listed."""
        place, known = self._find(symbols)
        cost = self.escape[symbols.indices] + gamma_bits(symbols.values)
        cost[known] = self.lengths[place]
        return self.zero.sum() + symbols.per_token(cost - self.zero[symbols.indices]), int((~known).sum())

    def levels(self, symbols: SparseCodes, width: Tensor) -> Tensor:
        """What listed symbols stand for: the mean of the training codes in their bin and, once, of the bin's middle, so
        that one code isn't taken for the mean of all; a latent's bins are `width` [F] wide. What is not listed stands
        for `zero_levels` [F], made in the same way."""
        place, known = self._find(symbols)
        levels = symbols.values * width[symbols.indices]
        levels[known] = (self.sums[place] + levels[known]) / (self.counts[place] + 1)
        return levels

    def _find(self, symbols: SparseCodes) -> tuple[Tensor, Tensor]:
        """Which listed symbols training had, bool, and the places of those in the table."""
        known = (symbols.values >= self.low) & (symbols.values < self.low + self.span)
        keys = symbols.indices * self.span + (symbols.values.long() - self.low)
        # within the range no key is another latent's
        known &= torch.isin(keys, self.keys)
        return torch.searchsorted(self.keys, keys[known]), known


def gamma_bits(symbols: Tensor) -> Tensor:
    """Bits of whole numbers in Elias' gamma code (1975), float64: 2 floor(log2 i) + 1, the i-th of 0, 1, -1, 2 ..."""
    number = torch.where(symbols == 0, 1, 2 * symbols.abs() + (symbols < 0)).double()
    return 2.0 * (torch.frexp(number).exponent - 1) + 1
