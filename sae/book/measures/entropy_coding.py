"""The cost of symbols under an ideal entropy coder that learned every latent's histogram from training samples.

    model = SymbolModel(training_symbols, training_codes.values)
    bits, unseen = model.bits(symbols)                      # bits of every sample [n]
    model.zero_levels, model.levels(symbols, widths)        # values that symbols decode to

Symbols are whole numbers stored as SparseCodes in CSR; symbols that are not listed are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels import SparseCodes


class SymbolModel:
    """p(s) = c_s / (n + d), c_s of the latent's n training symbols being s, and d the number of different ones.

    The rest, d / (n + d), is the probability of an escape, after which the symbol follows in a universal code
    (`gamma_bits`): every integer has a finite length, and the lengths are those of a prefix code. This is method C of
    Moffat 1990 ("Witten-Bell"); unlike adding one to each of thousands of possible bins, it costs a latent that rarely
    fires next to nothing.

    Args:
        symbols: of training samples [n, F]; zeros may be listed.
        values: the codes of the listed symbols, before quantisation.
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
        """Bits of every sample, float64 [m], and the number of symbols that training samples didn't have.

        Zeros must not be listed.
        """
        place, known = self._find(symbols)
        cost = self.escape[symbols.indices] + gamma_bits(symbols.values)
        cost[known] = self.lengths[place]
        return self.zero.sum() + symbols.per_token(cost - self.zero[symbols.indices]), int((~known).sum())

    def levels(self, symbols: SparseCodes, width: Tensor) -> Tensor:
        """The values that listed symbols decode to; a latent's bins are `width` [F] wide.

        A value is the mean of the training codes in the bin with the bin's middle counted as one more, so that a single
        code isn't taken for the mean. Symbols that are not listed decode to `zero_levels` [F], computed alike.
        """
        place, known = self._find(symbols)
        levels = symbols.values * width[symbols.indices]
        levels[known] = (self.sums[place] + levels[known]) / (self.counts[place] + 1)
        return levels

    def _find(self, symbols: SparseCodes) -> tuple[Tensor, Tensor]:
        """Places in the table of the symbols that training samples had, and a mask of these among the listed, bool."""
        known = (symbols.values >= self.low) & (symbols.values < self.low + self.span)
        keys = symbols.indices * self.span + (symbols.values.long() - self.low)
        # within the range no key is another latent's
        known &= torch.isin(keys, self.keys)
        return torch.searchsorted(self.keys, keys[known]), known


def gamma_bits(symbols: Tensor) -> Tensor:
    """Bits of whole numbers in Elias' gamma code (1975), float64: 2 floor(log2 i) + 1, the i-th of 0, 1, -1, 2 ..."""
    number = torch.where(symbols == 0, 1, 2 * symbols.abs() + (symbols < 0)).double()
    return 2.0 * (torch.frexp(number).exponent - 1) + 1
