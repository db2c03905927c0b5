"""Rate and distortion of any code by one procedure: quantise, count bits, decode the quantised code, measure FVU.

    curve = rate_distortion(stack(train_codes), stack(heldout_codes), x, decode)
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

Codes are stored as their non-zeros, and dense for a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sae.book.measures.entropy_coding import SymbolModel
from sae.evaluation.baselines import PCA
from sae.evaluation.reconstruction import fvu_of, fvu_sums
from sae_kernels import SparseCodes

Decode: TypeAlias = Callable[[Tensor], Tensor]
BLOCK = 4_000_000  # numbers in a dense block
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


def stack(batches: Iterable[Tensor | SparseCodes]) -> SparseCodes:
    """Batches of codes, dense [n, F] or sparse, as one table of their non-zeros: CSR, float32, on the CPU.

    Raises:
        ValueError: no batch, batches of different widths, or codes that aren't finite.
    """
    parts = [_listed(batch) for batch in batches]
    widths = {part.width for part in parts}
    if len(widths) != 1:
        raise ValueError(f"codes: expected batches [n, F] of one width F, got the widths {sorted(widths)}")
    values = torch.cat([part.values for part in parts])
    if not values.isfinite().all():
        raise ValueError(f"codes: expected finite numbers, got {(~values.isfinite()).sum()} that are not")
    counts = torch.cat([_offsets(part).diff() for part in parts])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseCodes(values, torch.cat([part.indices for part in parts]), widths.pop(), offsets)


def sensitivity(decode: Decode, codes: SparseCodes, *, probes: int = PROBES, seed: int = 0) -> Tensor:
    """How far the output moves for a unit of every latent: root mean square over samples of ||∂decode/∂z_j||, [F].

    For u standard normal, (Jᵀu)_j² has the mean ||J_j||², so the Jacobian J isn't formed (Hutchinson 1989).

    Args:
        decode: dense codes [b, F] -> outputs [b, D], differentiable.
        codes: of training samples (`stack`).
        probes: number of rows, at most; the first ones.
        seed: of the u.

    Raises:
        ValueError: `decode` passes no gradient.
    """
    # not torch's generator: a network of the same seed drew its weights from it
    rng = np.random.default_rng(seed)
    total, rows = torch.zeros(codes.width, dtype=torch.float64), min(probes, codes.tokens)
    for z in _blocks(_rows(codes, 0, rows)):
        z.requires_grad_(True)
        with torch.enable_grad():
            out = decode(z)
        if not out.requires_grad:
            raise ValueError("decode: passes no gradient to the codes, so the gains can't be measured; give `gain`")
        u = torch.from_numpy(rng.standard_normal(tuple(out.shape))).to(out.device, out.dtype)
        (pulled,) = torch.autograd.grad(out, z, u)
        total += pulled.double().square().sum(0)
    return (total / rows).sqrt()


def rate_distortion(
    train: SparseCodes,
    heldout: SparseCodes,
    x: Tensor,
    decode: Decode,
    *,
    gain: Tensor | None = None,
    steps: Sequence[float] | None = None,
) -> list[RatePoint]:
    """Bits and FVU of one code, for every step of its quantiser.

    Args:
        train: codes of training samples [n, F] (`stack`), for the medians, gains and histograms.
        heldout: codes of held-out samples [m, F] (`stack`).
        x: the held-out samples [m, D].
        decode: dense float32 codes [b, F], on the CPU -> reconstructions [b, D], row by row.
        gain: of every latent [F], if it is known, as an atom's norm is; None measures it by `sensitivity`.
        steps: widths of a bin in units of x; None means `default_steps(x)`.

    Returns:
        A point a step, in the order of the steps.

    Raises:
        ValueError: shapes that don't fit, a step that is not above 0, or one too fine for the codes' range.
    """
    if train.width != heldout.width or x.ndim != 2 or heldout.tokens != len(x) or 0 in (train.tokens, len(x)):
        shapes = f"[{train.tokens}, {train.width}], [{heldout.tokens}, {heldout.width}] and {list(x.shape)}"
        raise ValueError(f"expected codes train [n, F] and heldout [m, F] and outputs x [m, D], got {shapes}")
    gain = sensitivity(decode, train) if gain is None else gain.detach().cpu().double()
    if gain.shape != (train.width,) or not (gain.isfinite() & (gain >= 0)).all():
        raise ValueError(f"gain: expected {train.width} finite numbers >= 0, one a latent, got {tuple(gain.shape)}")
    centre = medians(train)
    centred, heldout, sums = _shifted(train, centre), _shifted(heldout, centre), fvu_sums(x.cpu())
    points = []
    for step in default_steps(x) if steps is None else steps:
        model = SymbolModel(quantise(centred, gain, step), centred.values)
        symbols = _without_zeros(quantise(heldout, gain, step))
        bits, unseen = model.bits(symbols)
        silent = model.zero_levels
        levels = model.levels(symbols, torch.where(gain > 0, step / gain, 0.0))
        decoded = symbols.with_values(levels - silent[symbols.indices])
        fvu = fvu_of("error", sums | {"error": _error(decoded, centre + silent, x, decode)}).item()
        per_sample = (len(symbols.values) / len(x), unseen / len(x))
        points.append(RatePoint(float(step), bits.mean().item(), fvu, *per_sample))
    return points


def pca_rate_distortion(
    train: Tensor, x: Tensor, *, components: int | None = None, steps: Sequence[float] | None = None
) -> list[RatePoint]:
    """The same procedure on the principal components of training rows [n, D], for held-out rows x [m, D].

    Args:
        train: rows to fit the components to, too.
        x: held-out rows.
        components: how many are coded; None means all D. The step decides how many of them cost anything.
        steps: see `rate_distortion`.
    """
    pca = PCA.fit([train])

    def codes(rows: Tensor) -> SparseCodes:
        return stack(pca.codes(part, components) for part in rows.split(max(1, BLOCK // rows.shape[1])))

    fitted = codes(train)
    return rate_distortion(fitted, codes(x), x, pca.decode, gain=torch.ones(fitted.width), steps=steps)


def default_steps(x: Tensor) -> list[float]:
    """Half octaves from 2 down to 1/256 of the root mean square distance of x [m, D] from its mean."""
    deviation = (fvu_sums(x.cpu())["square"] / len(x)).sqrt().item()
    return [deviation * 2 ** (1 - half / 2) for half in range(19)]


def medians(codes: SparseCodes) -> Tensor:
    """Median of every latent (of an even number the lower), [F]: 0 unless it is on in half of the samples."""
    centre, rows = torch.zeros(codes.width), codes.rows()
    busy = (2 * torch.bincount(codes.indices, minlength=codes.width) >= codes.tokens).nonzero()[:, 0]
    for some in busy.split(max(1, BLOCK // codes.tokens)):
        column = torch.full((codes.width,), -1).index_put((some,), torch.arange(len(some)))
        place = column[codes.indices]
        dense = torch.zeros(codes.tokens, len(some))
        dense[rows[place >= 0], place[place >= 0]] = codes.values[place >= 0]
        centre[some] = dense.median(0).values
    return centre


def quantise(codes: SparseCodes, gain: Tensor, step: float) -> SparseCodes:
    """Symbols round(z gain / step) of the listed codes, whole numbers in float64.

    Raises:
        ValueError: the step isn't above 0, or a symbol is beyond 2^31, too wide for a histogram.
    """
    if not step > 0:
        raise ValueError(f"step {step}: expected a number above 0")
    scaled = (codes.values.double() * (gain / step)[codes.indices]).round()
    if len(scaled) and scaled.abs().max() > 2**31:
        raise ValueError(f"step {step}: the codes span more than 2^31 of it; take a coarser one")
    return codes.with_values(scaled)


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


def _listed(batch: Tensor | SparseCodes) -> SparseCodes:
    """A batch as CSR without zeros, on the CPU."""
    if isinstance(batch, SparseCodes):
        counts = torch.bincount(batch.rows().flatten(), minlength=batch.tokens).cpu()
        values, indices, width = batch.values.flatten(), batch.indices.flatten(), batch.width
    else:
        rows, indices = batch.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(batch)).cpu()
        values, width = batch[rows, indices], batch.shape[1]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _without_zeros(SparseCodes(values.detach().cpu().float(), indices.cpu(), width, offsets))


def _without_zeros(codes: SparseCodes) -> SparseCodes:
    keep = codes.values != 0
    before = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cumsum(0)])
    return SparseCodes(codes.values[keep], codes.indices[keep], codes.width, before[_offsets(codes)])


def _offsets(codes: SparseCodes) -> Tensor:
    assert codes.offsets is not None
    return codes.offsets


def _rows(codes: SparseCodes, start: int, end: int) -> SparseCodes:
    offsets = _offsets(codes)[start : end + 1]
    entries = slice(int(offsets[0]), int(offsets[-1]))
    return SparseCodes(codes.values[entries], codes.indices[entries], codes.width, offsets - offsets[0])


def _blocks(codes: SparseCodes) -> Iterator[Tensor]:
    """Rows as dense tensors, a block at a time."""
    rows = max(1, BLOCK // codes.width)
    for start in range(0, codes.tokens, rows):
        yield _rows(codes, start, min(start + rows, codes.tokens)).to_dense()


def _shifted(codes: SparseCodes, centre: Tensor) -> SparseCodes:
    """Codes less `centre` [F]; a latent of centre 0 stays sparse."""
    return stack(block - centre for block in _blocks(codes)) if centre.any() else codes


@torch.no_grad()
def _error(codes: SparseCodes, centre: Tensor, x: Tensor, decode: Decode) -> Tensor:
    """Σ||x - decode(codes + centre)||²."""
    done, error = 0, torch.zeros((), dtype=torch.float64)
    for block in _blocks(codes):
        out = decode((block + centre).float()).cpu().double()
        error += (x[done : done + len(block)].cpu().double() - out).square().sum()
        done += len(block)
    return error
