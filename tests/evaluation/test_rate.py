"""Rate and distortion against closed forms and brute force: code lengths, Gaussians, sparse codes, hulls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae.book.measures.rate import (
    RatePoint,
    SymbolModel,
    bits_at,
    default_steps,
    fvu_at,
    gamma_bits,
    hull,
    pca_rate_distortion,
    quantise,
    rate_distortion,
    sensitivity,
)
from sae.evaluation.baselines import PCA

GAP = 0.5 * math.log2(2 * math.pi * math.e / 12)  # .2546 bits a component


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def identity(z: Tensor) -> Tensor:
    return z


def point(bits: float, fvu: float) -> RatePoint:
    return RatePoint(step=1.0, bits=bits, fvu=fvu, l0=0.0, unseen=0.0)


def gaussian_bound(variances: Tensor, level: float) -> tuple[float, float]:
    """Bits and FVU of independent Gaussians at a water level (Cover & Thomas 2006, theorem 10.3.3)."""
    bits = 0.5 * (variances / level).clamp_min(1).log2().sum()
    return bits.item(), (variances.clamp_max(level).sum() / variances.sum()).item()


def learned(symbols: Tensor) -> SymbolModel:
    return SymbolModel(symbols.to_sparse(), symbols.to_sparse())


def sparse(rows: int, width: int, rate: float, seed: int = 0) -> Tensor:
    """Dense codes of which a share `rate` is on, exponential."""
    draw = torch.Generator().manual_seed(seed)
    on = torch.rand(rows, width, generator=draw) < rate
    return on * torch.empty(rows, width).exponential_(generator=draw)


def test_code_lengths_of_all_integers_make_a_prefix_code() -> None:
    table = torch.tensor([[0.0, 3, -2], [0, 3, 5], [0, 1, 0], [0, 0, 7]])
    model = learned(table)
    integers = torch.arange(-(2**15), 2**15).double()
    for latent in range(3):
        codes = torch.zeros(len(integers), 3, dtype=torch.float64)
        codes[:, latent] = integers
        others = model.zero.sum() - model.zero[latent]
        lengths = model.bits(codes.to_sparse())[0] - others
        # Kraft: a prefix code's sum is at most 1; what is missing is that no escape is followed by a symbol seen
        seen = table[:, latent].unique()
        escape = len(seen) / (4 + len(seen))
        want = 1 - escape * (2 ** -gamma_bits(seen)).sum()
        assert (2**-lengths).sum() == pytest.approx(want.item(), abs=1e-4)


def test_gamma_code_numbers_integers_by_size() -> None:
    assert gamma_bits(torch.tensor([0, 1, -1, 2, -2, 3, -3, 4.0])).tolist() == [1, 3, 3, 5, 5, 5, 5, 7]


def test_bits_are_those_of_counting_by_hand() -> None:
    train = torch.tensor([[1.0, 0], [1, 0], [2, 0], [0, 0]])
    heldout = torch.tensor([[1.0, 0], [0, 0], [2, 4], [5, 0]])
    bits, unseen = learned(train).bits(heldout.to_sparse())
    # latent 0 had three different symbols in 4 samples: 7 shares, of which 1 has two and the escape three
    one, two, none, escape = (math.log2(7 / share) for share in (2, 1, 1, 3))
    silent, woken = math.log2(5 / 4), math.log2(5)  # latent 1 had one symbol, four times
    want = [one + silent, none + silent, two + woken + 7, escape + 7 + silent]  # 4 is the 8th number, -4 and 5 follow
    assert bits.tolist() == pytest.approx(want)
    assert unseen == 2


def test_a_silent_symbol_stands_for_the_mean_of_its_codes_and_once_of_zero() -> None:
    """Latent 0: small codes .2 and .4 among four zeros in all; latent 1: none; latent 2: always on."""
    codes = torch.tensor([[0.2, 0.0, 3.0], [0.4, 0.0, 3.0], [0.0, 5.0, 3.0], [0.0, 0.0, 3.0], [7.0, 0.0, 3.0]])
    model = SymbolModel(quantise(codes.to_sparse(), torch.ones(3), 1.0), codes.to_sparse())
    assert model.zero_levels.tolist() == pytest.approx([(0.2 + 0.4) / (4 + 1), 0, 0])


def test_symbols_beyond_the_training_range_are_not_taken_for_the_neighbours() -> None:
    model = learned(torch.tensor([[1.0, 1], [2, 2], [0, 0]]))
    # under a range of two symbols a latent, latent 0's 3 and latent 1's 1 would share a key
    far, unseen = model.bits(torch.tensor([[3.0, 0], [-1, 0]]).to_sparse())
    assert unseen == 2
    escape = math.log2(6 / 3)
    assert far.tolist() == pytest.approx([math.log2(6) + escape + 5, math.log2(6) + escape + 3])


def test_bits_of_bernoulli_latents_are_their_entropy() -> None:
    rates = torch.tensor([0.5, 0.1, 0.01, 0.0])
    draw = torch.Generator().manual_seed(0)
    train, heldout = (torch.rand(100_000, 4, generator=draw) < rates for _ in range(2))
    bits, unseen = learned(train.float()).bits(heldout.float().to_sparse())
    entropy = sum(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (0.5, 0.1, 0.01))
    assert bits.mean().item() == pytest.approx(entropy, rel=0.01)
    assert unseen == 0


def test_a_fine_step_costs_a_gaussian_a_quarter_of_a_bit_over_its_bound() -> None:
    train, heldout = normal(200_000, 1), normal(200_000, 1, seed=1)
    code = (train, heldout, heldout, identity)
    for found in rate_distortion(*code, gain=torch.ones(1), steps=[0.5, 0.25, 0.125]):
        assert found.fvu == pytest.approx(found.step**2 / 12, rel=0.03)
        bits, fvu = gaussian_bound(torch.ones(1), level=found.fvu)
        assert fvu == pytest.approx(found.fvu)
        assert found.bits - bits == pytest.approx(GAP, abs=0.005)


def test_a_bin_is_decoded_to_the_mean_of_its_training_codes() -> None:
    train, heldout = sparse(100_000, 1, 1.0), sparse(100_000, 1, 1.0, seed=1)
    code = (train, heldout, heldout, identity)
    one, many = rate_distortion(*code, gain=torch.ones(1), steps=[100.0, 1.0])
    # one bin: nothing is sent, and all that is lost is the variance, around the mean and not around the bin's middle
    assert one.bits < 1e-3
    assert one.fvu == pytest.approx(1, abs=1e-3)
    # an exponential has no memory: within a bin of width w its variance is 1 - w² e^-w / (1 - e^-w)²; the first bin
    # ends half a step over the median, ln 2, and begins at 0 and not half a step below it: the one below it is narrow
    edges = [0, math.log(2) - 0.5, math.log(2) + 0.5]
    widths = [edges[1], 1.0]
    inside = [1 - w**2 * math.exp(-w) / (1 - math.exp(-w)) ** 2 for w in widths]
    first = 1 - math.exp(-edges[1])
    assert many.fvu == pytest.approx(first * inside[0] + (1 - first) * inside[1], rel=0.03)


def test_pca_stays_above_reverse_water_filling_and_within_the_known_gap() -> None:
    variances = torch.tensor([16.0, 4, 1, 0.25, 1 / 16, 1 / 64])
    turn = torch.linalg.qr(normal(6, 6, seed=5)).Q
    train, heldout = ((normal(40_000, 6, seed=s) * variances.sqrt()) @ turn + 3 for s in (1, 2))
    curve = pca_rate_distortion(train, heldout)
    assert len(curve) == 19
    for found in curve[:14]:  # finer steps have too many bins for the histograms of 40,000 samples
        # the water level that gives the Gaussian the same distortion, by bisection
        low, high = 1e-9, 16.0
        for _ in range(60):
            level = (low * high) ** 0.5
            low, high = (level, high) if gaussian_bound(variances, level)[1] < found.fvu else (low, level)
        excess = found.bits - gaussian_bound(variances, low)[0]
        assert 0 < excess < 6 * (GAP + 0.015)
    assert excess == pytest.approx(6 * GAP, abs=0.1)  # the last of them: every component pays


def test_fewer_components_give_a_floor_that_more_bits_do_not_pass() -> None:
    variances = torch.tensor([4.0, 1, 0.25])
    train, heldout = (normal(5000, 3, seed=s) * variances.sqrt() for s in (1, 2))
    pca = PCA.fit([train])
    codes = (pca.codes(part, 1).float() for part in (train, heldout))
    curve = rate_distortion(*codes, heldout, pca.decode, gain=torch.ones(1))
    assert min(found.fvu for found in curve) == pytest.approx(1.25 / 5.25, rel=0.05)


def test_the_sweep_is_what_rounding_and_decoding_by_hand_gives() -> None:
    codes, atoms = sparse(400, 30, 0.1), normal(30, 8, seed=3)
    heldout = sparse(300, 30, 0.1, seed=1)
    x, step, gain = heldout @ atoms + normal(300, 8, seed=4) / 10, 0.7, atoms.norm(dim=1)
    (found,) = rate_distortion(codes, heldout, x, lambda z: z @ atoms, gain=gain, steps=[step])
    known, symbols = (codes * gain / step).round(), (heldout * gain / step).round()
    levels = symbols * step / gain
    for latent in range(30):
        for symbol in known[:, latent].unique():
            there = codes[known[:, latent] == symbol, latent]
            middle = symbol * step / gain[latent]
            levels[symbols[:, latent] == symbol, latent] = (there.sum() + middle) / (len(there) + 1)
    error = (x - levels @ atoms).square().sum()
    assert found.fvu == pytest.approx((error / (x - x.mean(0)).square().sum()).item(), rel=1e-5)
    assert found.l0 == pytest.approx((symbols != 0).sum().item() / 300)
    bits, unseen = learned(known).bits(symbols.to_sparse())
    assert found.bits == pytest.approx(bits.mean().item())
    assert found.unseen == unseen / 300 > 0


def test_rescaled_shifted_latents_cost_the_same() -> None:
    atoms = normal(6, 10, seed=3)
    train, heldout = normal(3000, 6, seed=1), normal(2000, 6, seed=2)
    x = heldout @ atoms
    scale, shift = torch.tensor([1.0, 4.0, 0.25, 2.0, 8.0, 0.5]), torch.tensor([0.0, 7, -3, 1, 100, 2])
    plain = rate_distortion(train, heldout, x, lambda z: z @ atoms, gain=atoms.norm(dim=1), steps=[0.5, 2.0])
    moved = rate_distortion(
        train * scale + shift,
        heldout * scale + shift,
        x,
        lambda z: ((z - shift) / scale) @ atoms,
        gain=atoms.norm(dim=1) / scale,
        steps=[0.5, 2.0],
    )
    for one, other in zip(plain, moved, strict=True):
        assert other.bits == pytest.approx(one.bits, rel=2e-3)
        assert other.fvu == pytest.approx(one.fvu, rel=2e-2)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = normal(12, 5)
    train, heldout = sparse(60, 12, 0.6), sparse(50, 12, 0.6, seed=1)

    def curve() -> list[RatePoint]:
        code = (train, heldout, heldout @ atoms, lambda z: z @ atoms)
        return rate_distortion(*code, gain=torch.ones(12), steps=[0.1, 1.0])

    whole = curve()
    monkeypatch.setattr("sae.book.measures.rate.BLOCK", 40)
    for one, other in zip(whole, curve(), strict=True):
        assert other == pytest.approx(one, rel=1e-6)


def test_sensitivity_is_the_norm_of_the_jacobians_columns() -> None:
    atoms = normal(7, 40, seed=2) * torch.tensor([0.0, 0.1, 1, 1, 2, 5, 10])[:, None]
    codes = normal(1500, 7)
    linear = sensitivity(lambda z: z @ atoms, codes)
    assert linear == pytest.approx(atoms.norm(dim=1), rel=0.1)
    assert linear[0] == 0
    bent = sensitivity(lambda z: (z @ atoms / 10).tanh(), codes, probes=1500)
    slope = 1 - (codes @ atoms / 10).tanh().square()  # of every output, for every sample
    want = ((slope.square() @ (atoms / 10).square().T).mean(0)).sqrt()
    assert bent == pytest.approx(want, rel=0.1, abs=1e-9)
    with torch.no_grad():
        assert torch.equal(sensitivity(lambda z: z @ atoms, codes), linear)
    with pytest.raises(ValueError, match="give `gain`"):
        sensitivity(lambda z: (z @ atoms).detach(), codes)


def test_sensitivity_does_not_fall_for_weights_of_the_same_seed() -> None:
    atoms = normal(900, 300, seed=0)
    found = sensitivity(lambda z: z @ atoms, normal(500, 900, seed=1), seed=0)
    assert found == pytest.approx(atoms.norm(dim=1), rel=0.2)


def test_a_latent_without_effect_costs_nothing() -> None:
    atoms = torch.cat([normal(3, 5), torch.zeros(2, 5)])
    train, heldout = normal(2000, 5), normal(1000, 5, seed=1)
    x = heldout @ atoms
    whole = rate_distortion(train, heldout, x, lambda z: z @ atoms, steps=[0.2])[0]
    alone = rate_distortion(train[:, :3], heldout[:, :3], x, lambda z: z @ atoms[:3], steps=[0.2])[0]
    assert whole.bits == pytest.approx(alone.bits, abs=0.1)
    assert whole.fvu == pytest.approx(alone.fvu, rel=0.1)


def test_dead_latents_of_a_wide_dictionary_cost_next_to_nothing() -> None:
    codes = torch.zeros(500, 16_384)
    codes[:, :8] = (10 * sparse(500, 8, 0.5)).round()
    few, many = (learned(table).bits(table.to_sparse())[0] for table in (codes[:, :8], codes))
    # 16,376 latents of which 500 samples say that they are silent: log2(501 / 500) bits each
    assert (many - few).mean().item() == pytest.approx(16_376 * math.log2(501 / 500))


def test_finer_steps_cost_more_and_lose_less() -> None:
    train, heldout = normal(4000, 8), normal(2000, 8, seed=1)
    steps = default_steps(heldout)
    deviation = math.sqrt(8)
    assert (steps[0], steps[2], steps[-1]) == pytest.approx((2 * deviation, deviation, deviation / 256), rel=0.05)
    curve = rate_distortion(train, heldout, heldout, identity, gain=torch.ones(8), steps=steps[:12])
    bits, fvu = [found.bits for found in curve], [found.fvu for found in curve]
    assert bits == sorted(bits)
    assert fvu == sorted(fvu, reverse=True)


def test_hull_drops_what_time_sharing_beats() -> None:
    curve = [point(4, 0.2), point(0, 1.0), point(2, 0.7), point(3, 0.21), point(5, 0.3), point(4, 0.5), point(8, 0.1)]
    assert [(kept.bits, kept.fvu) for kept in hull(curve)] == [(0, 1.0), (3, 0.21), (8, 0.1)]
    assert fvu_at(curve, 1.5) == pytest.approx((1 + 0.21) / 2)
    assert fvu_at(curve, 100) == 0.1
    assert math.isnan(fvu_at(curve[:1], 3.9))
    assert bits_at(curve, 0.155) == pytest.approx(5.5)
    assert bits_at(curve, 2.0) == 0
    assert math.isnan(bits_at(curve, 0.09))
    assert bits_at(curve, fvu_at(curve, 2.2)) == pytest.approx(2.2)


def test_what_does_not_fit_is_refused() -> None:
    table, x = normal(10, 3), normal(10, 3)
    with pytest.raises(ValueError, match=r"got \[10, 3\], \[10, 3\] and \[9, 3\]"):
        rate_distortion(table, table, x[:9], identity)
    with pytest.raises(ValueError, match=r"got \[10, 3\], \[10, 2\] and \[10, 3\]"):
        rate_distortion(table, table[:, :2], x, identity)
    with pytest.raises(ValueError, match="30 that are not"):
        rate_distortion(table, table * torch.nan, x, identity)
    with pytest.raises(ValueError, match="gain: expected 3 finite numbers"):
        rate_distortion(table, table, x, identity, gain=torch.ones(2))
    with pytest.raises(ValueError, match="step -1"):
        rate_distortion(table, table, x, identity, steps=[-1.0])
    with pytest.raises(ValueError, match="take a coarser one"):
        rate_distortion(table, table, x, identity, steps=[1e-12])


def test_pca_of_the_hull_is_the_baselines_pca() -> None:
    train, heldout = normal(2000, 5) * torch.arange(1, 6), normal(500, 5, seed=1) * torch.arange(1, 6)
    pca = PCA.fit([train])
    square, energy = pca.energies(heldout)
    z = pca.codes(heldout, 2)
    assert torch.allclose(z.square(), energy[:, :2])
    lost = (heldout - pca.decode(z)).square().sum(1)
    assert torch.allclose(lost, square - energy[:, :2].sum(1), atol=1e-9)
    left = (square - energy[:, :2].sum(1)).sum() / (heldout - heldout.mean(0)).square().sum()
    codes = (pca.codes(part, 2).float() for part in (train, heldout))
    fine = rate_distortion(*codes, heldout, pca.decode, gain=torch.ones(2), steps=[1e-3])[0]
    assert fine.fvu == pytest.approx(left.item(), rel=1e-4)
