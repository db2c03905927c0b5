"""Rate and distortion of any code by one procedure: quantise, count bits, decode the quantised code, measure FVU.

    curve = rate_distortion(train_codes, heldout_codes, x, decode)
    fvu_at(curve, bits=40.0), bits_at(curve, fvu=0.2)

The same three steps for every family, sparse or dense, linear or not:

1. A latent's quantiser is uniform and mid-tread around its training median (0 for a latent silent in most samples):
   symbol = round((z - median) gain / step), decoded to the mean of the training codes in its bin. `gain` is how far the
   output moves, in its own units, for a unit of the latent, so a step is the same size of error in the output for all
   latents: an atom's norm for an SAE, 1 for PCA, measured by `sensitivity` for a network. Reverse water-filling asks
   for steps that are equal in the output (Cover & Thomas 2006, 10.3): a component below the step sends zeros and costs
   next to nothing.
2. A latent's symbols are entropy-coded under its training histogram: -log2 p(symbol) bits on held-out samples, for an
   ideal coder that knows the histograms (their own size is not counted). See `SymbolModel`.
3. FVU of the decoded codes is measured on the same held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sae.evaluation.baselines import PCA
from sae.evaluation.reconstruction import fvu_of, fvu_sums

Decode: TypeAlias = Callable[[Tensor], Tensor]
BLOCK = 4_000_000  # codes decoded at a time
PROBES = 1024  # samples from which gains are measured, each to about 2%


class RatePoint(NamedTuple):
    """One step's quantiser, on held-out samples."""

    step: float
    """Width of a bin, in units of the output."""
    bits: float
    """Mean bits a sample, all latents together."""
    fvu: float
    """Of the decoded quantised codes."""
    l0: float
    """Mean number of non-zero symbols a sample."""
    unseen: float
    """Mean number of those that the latent never had in training: if there are many, train on more samples."""


def sensitivity(decode: Decode, codes: Tensor, *, probes: int = PROBES, seed: int = 0) -> Tensor:
    """How far the output moves for a unit of every latent: root mean square over samples of ||∂decode/∂z_j||, [F].

    For u standard normal, (Jᵀu)_j² has the mean ||J_j||², so the Jacobian J isn't formed (Hutchinson 1989).

    Args:
        decode: dense codes [b, F] -> outputs [b, D], differentiable.
        codes: of training samples [n, F].
        probes: number of rows, at most; the first ones.
        seed: of the u.

    Raises:
        ValueError: `decode` passes no gradient.
    """
    # not torch's generator: a network of the same seed drew its weights from it
    rng = np.random.default_rng(seed)
    total, rows = torch.zeros(codes.shape[1], dtype=torch.float64), codes[:probes]
    for block in _blocks(rows):
        z = block.clone().requires_grad_(True)
        with torch.enable_grad():
            out = decode(z)
        if not out.requires_grad:
            raise ValueError("decode: passes no gradient to the codes, so the gains can't be measured; give `gain`")
        u = torch.from_numpy(rng.standard_normal(tuple(out.shape))).to(out.device, out.dtype)
        (pulled,) = torch.autograd.grad(out, z, u)
        total += pulled.double().square().sum(0)
    return (total / len(rows)).sqrt()


def rate_distortion(
    train: Tensor,
    heldout: Tensor,
    x: Tensor,
    decode: Decode,
    *,
    gain: Tensor | None = None,
    steps: Sequence[float] | None = None,
) -> list[RatePoint]:
    """Bits and FVU of one code, for every step of its quantiser.

    Args:
        train: codes of training samples [n, F], float32 on the CPU, for the medians, gains and histograms.
        heldout: codes of held-out samples [m, F].
        x: the held-out samples [m, D].
        decode: dense float32 codes [b, F], on the CPU -> reconstructions [b, D], row by row.
        gain: of every latent [F], if it is known, as an atom's norm is; None measures it by `sensitivity`.
        steps: widths of a bin in units of x; None means `default_steps(x)`.

    Returns:
        A point a step, in the order of the steps.

    Raises:
        ValueError: shapes that don't fit, codes that aren't finite, a step that is not above 0, or one too fine for the
            codes' range.
    """
    fit = {train.ndim, heldout.ndim, x.ndim} == {2} and heldout.shape == (len(x), train.shape[1])
    if not fit or 0 in (len(train), len(x)):
        shapes = f"{list(train.shape)}, {list(heldout.shape)} and {list(x.shape)}"
        raise ValueError(f"expected codes train [n, F] and heldout [m, F] and outputs x [m, D], got {shapes}")
    for codes in (train, heldout):
        if not codes.isfinite().all():
            raise ValueError(f"codes: expected finite numbers, got {(~codes.isfinite()).sum()} that are not")
    gain = sensitivity(decode, train) if gain is None else gain.detach().cpu().double()
    if gain.shape != train.shape[1:] or not (gain.isfinite() & (gain >= 0)).all():
        raise ValueError(f"gain: expected {train.shape[1]} finite numbers >= 0, one a latent, got {tuple(gain.shape)}")
    centre = train.median(0).values
    centred, offset, sums = (train - centre).to_sparse(), (heldout - centre).to_sparse(), fvu_sums(x.cpu())
    points = []
    for step in default_steps(x) if steps is None else steps:
        model, symbols = SymbolModel(quantise(centred, gain, step), centred), quantise(offset, gain, step)
        bits, unseen = model.bits(symbols)
        decoded = centre + model.levels(symbols, torch.where(gain > 0, step / gain, 0.0))
        fvu = fvu_of("error", sums | {"error": _error(decoded, x, decode)}).item()
        per_sample = ((symbols.values() != 0).sum().item() / len(x), unseen / len(x))
        points.append(RatePoint(float(step), bits.mean().item(), fvu, *per_sample))
    return points


def pca_rate_distortion(train: Tensor, x: Tensor) -> list[RatePoint]:
    """The same procedure on all principal components of training rows [n, D], for held-out rows x [m, D].

    The step decides how many of them cost anything.
    """
    pca = PCA.fit([train])
    fitted, codes = pca.codes(train).float(), pca.codes(x).float()
    return rate_distortion(fitted, codes, x, pca.decode, gain=torch.ones(fitted.shape[1]))


def default_steps(x: Tensor) -> list[float]:
    """Half octaves from 2 down to 1/256 of the root mean square distance of x [m, D] from its mean."""
    deviation = (fvu_sums(x.cpu())["square"] / len(x)).sqrt().item()
    return [deviation * 2 ** (1 - half / 2) for half in range(19)]


def quantise(codes: Tensor, gain: Tensor, step: float) -> Tensor:
    """Symbols round(z gain / step) of sparse codes [n, F], whole numbers in float64.

    Raises:
        ValueError: the step isn't above 0, or a symbol is beyond 2^31, too wide for a histogram.
    """
    if not step > 0:
        raise ValueError(f"step {step}: expected a number above 0")
    scaled = (codes.values().double() * (gain / step)[codes.indices()[1]]).round()
    if len(scaled) and scaled.abs().max() > 2**31:
        raise ValueError(f"step {step}: the codes span more than 2^31 of it; take a coarser one")
    return torch.sparse_coo_tensor(codes.indices(), scaled, codes.shape, is_coalesced=True, check_invariants=False)


def hull(curve: Iterable[RatePoint]) -> list[RatePoint]:
    """The lower convex hull of a curve, FVU falling as bits rise; points between its corners need time-sharing."""
    lower: list[RatePoint] = []
    for point in sorted(curve, key=lambda point: (point.bits, point.fvu)):
        if lower and not point.fvu < lower[-1].fvu:
            continue
        while len(lower) > 1 and _slope(lower[-2], lower[-1]) >= _slope(lower[-1], point):
            lower.pop()
        lower.append(point)
    return lower


def fvu_at(curve: Iterable[RatePoint], bits: float) -> float:
    """Least FVU with at most `bits` a sample, on the hull; NaN if no point has as few."""
    lower = hull(curve)
    return float(np.interp(bits, [point.bits for point in lower], [point.fvu for point in lower], left=np.nan))


def bits_at(curve: Iterable[RatePoint], fvu: float) -> float:
    """Least bits a sample for at most `fvu`, on the hull; NaN if no point has as little."""
    rising = hull(curve)[::-1]
    return float(np.interp(fvu, [point.fvu for point in rising], [point.bits for point in rising], left=np.nan))


def _slope(start: RatePoint, end: RatePoint) -> float:
    return (end.fvu - start.fvu) / (end.bits - start.bits)


def _blocks(codes: Tensor) -> tuple[Tensor, ...]:
    return codes.split(max(1, BLOCK // codes.shape[1]))


@torch.no_grad()
def _error(codes: Tensor, x: Tensor, decode: Decode) -> Tensor:
    """Σ||x - decode(codes)||²."""
    out = torch.cat([decode(block.float()).cpu().double() for block in _blocks(codes)])
    return (x.cpu().double() - out).square().sum()


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
