"""The formats of Adam's state: rounding keeps the mean, numbers on the grid stay, and no second moment underflows."""

from __future__ import annotations

import pytest
import torch

from sae_kernels import Parameters, adam_step, fused_forward, fused_update, use_backend
from sae_kernels.adam_step.op import adam_step as checked
from sae_kernels.formats import cpu, naive
from sae_kernels.formats.naive import TAIL, expanded, store, zero_moment

SHAPE = (37, 53)


def drawn(seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows of very different sizes, some of them or of their numbers zero."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(SHAPE, generator=draw) * torch.randn(SHAPE[0], 1, generator=draw).mul(4).exp() * scale
    rows[3], rows[5, ::2] = 0, 0
    return rows


def codes(values: torch.Tensor, kind: naive.Kind, step: int = 1) -> torch.Tensor:
    return store(values, zero_moment(values, torch.uint8), kind, step)


@pytest.mark.parametrize("kind", ["m", "v"])
def test_eight_bits_keep_the_mean_and_are_within_an_eighth(kind: naive.Kind) -> None:
    values = drawn()
    values = values if kind == "m" else values.square()
    passes = [expanded(codes(values, kind, step), kind) for step in range(200)]
    # above the range's lower end, where the steps are fixed
    large = values.abs() > 2.0**-12 * values.abs().amax(1, keepdim=True)
    errors = torch.stack([(p - values)[large] / values[large] for p in passes])
    assert errors.abs().max() <= 0.125
    assert errors.mean().abs() < 1e-3
    assert errors.mean(0).abs().max() < 0.02
    assert not passes[0][values == 0].any()


@pytest.mark.parametrize("kind", ["m", "v"])
def test_numbers_on_the_grid_stay_where_the_scale_changes(kind: naive.Kind) -> None:
    values = drawn()
    grid = expanded(codes(values if kind == "m" else values.square(), kind), kind)
    grid[:, 7] = grid.abs().amax(1) * 8
    again = expanded(codes(grid, kind, 2), kind)
    kept = grid.abs() > 2.0**-11 * grid.abs().amax(1, keepdim=True)
    assert torch.equal(again[kept], grid[kept])


def test_a_second_moment_that_is_not_zero_stays_so() -> None:
    values = torch.full(SHAPE, 1e-30)
    values[:, 0] = 1.0
    stored = expanded(codes(values, "v"), "v")
    assert (stored > 0).all()
    assert (stored[:, 1:] < 1e-9).all()


@pytest.mark.parametrize("kind", ["m", "v", "w"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("scale", [1.0, 1e-37])
def test_the_cpu_rounds_and_expands_as_the_reference(kind: naive.Kind, dtype: torch.dtype, scale: float) -> None:
    if kind == "w" and dtype == torch.uint8:
        pytest.skip("weights are not offered in 8 bits")
    values = drawn(scale=scale)
    values = values.square() if kind == "v" else values
    ours, step = zero_moment(values, dtype), 5
    place = step * naive.STRIDE & 0xFFFFFFFF
    cpu.store(values.numpy().copy(), ours, kind, cpu.np.uint32(place))
    assert torch.equal(ours, store(values, ours, kind, step))
    assert torch.equal(torch.from_numpy(cpu.expand(ours, kind, "test")), expanded(ours, kind))


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16, torch.uint8])
def test_adam_in_every_format_equals_the_reference(unit_rows: bool, weights: torch.dtype, moments: torch.dtype) -> None:
    results = []
    for backend in ("cpu", "naive"):
        # more rows than are expanded at a time
        draw = torch.Generator().manual_seed(0)
        param = torch.nn.functional.normalize(torch.randn(300, 19, generator=draw), dim=1).to(weights)
        m, v = zero_moment(param, moments), zero_moment(param, moments)
        with use_backend(backend):
            for step in range(1, 5):
                gradient = torch.randn(300, 19, generator=draw)
                adam_step(param, gradient, m, v, step=step, lr=1e-2, eps=1e-3, unit_rows=unit_rows)
        results.append((param, m, v))
    for ours, theirs in zip(*results, strict=True):
        if ours.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 if moments == torch.float32 else 1e-3)
        # sums that differ in their last bit may round to the other neighbour
        else:
            assert (ours == theirs).float().mean() > 0.98


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(
    ("weights", "moments"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.uint8),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.uint8),
    ],
)
def test_fused_steps_in_every_format_equal_the_reference(
    max_norm: float | None, weights: torch.dtype, moments: torch.dtype
) -> None:
    results = []
    for backend in ("cpu", "naive"):
        draw = torch.Generator().manual_seed(0)
        atoms = torch.nn.functional.normalize(torch.randn(301, 24, generator=draw), dim=1).to(weights)
        params = Parameters(atoms.clone(), torch.zeros(301), atoms, torch.zeros(24))
        m, v = (Parameters(*(zero_moment(p, moments if p.ndim == 2 else p.dtype) for p in params)) for _ in "mv")
        with use_backend(backend):
            for step in range(1, 4):
                forward = fused_forward(params, torch.randn(65, 24, generator=draw), 5)
                # Adam's epsilon is large here, as a moment rounded to its other neighbour moves a weight
                result = fused_update(params, m, v, forward, step=step, lr=1e-3, eps=1e-1, max_norm=max_norm)
                assert result.applied
        assert {params.W_enc.dtype, params.W_dec.dtype} == {weights}
        assert (params.W_dec.float().norm(dim=1) - 1).abs().max() < 5e-3
        results.append((*params, *m, *v))
    for ours, theirs in zip(*results, strict=True):
        if ours.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        else:
            assert (ours == theirs).float().mean() > 0.95


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16, torch.uint8])
def test_small_steps_add_up_in_every_format(weights: torch.dtype, moments: torch.dtype) -> None:
    # a step moves a weight by less than half the distance of two bf16 numbers, and its second moment by a thousandth
    param = torch.ones(64, 64, dtype=weights)
    m, v = zero_moment(param, moments), zero_moment(param, moments)
    for step in range(1, 401):
        adam_step(param, torch.full((64, 64), 2.0), m, v, step=step, lr=1e-3)
    assert expanded(v, "v").mean().item() == pytest.approx(4 * (1 - 0.999**400), rel=2e-2)
    assert 1 - param.float().mean().item() == pytest.approx(0.4, rel=5e-2)


def test_shapes_and_dtypes_that_are_not_offered_are_named() -> None:
    param = torch.zeros(SHAPE)
    for moment, message in (
        (torch.zeros(SHAPE, dtype=torch.uint8), rf"expected m and v \[37, {53 + TAIL}\]; got \[37, 53\]"),
        (torch.zeros(SHAPE, dtype=torch.float16), "expected m and v both in one of"),
    ):
        with pytest.raises(ValueError, match=message):
            checked(param, param, moment, moment, step=1, lr=1e-3)
    bias = torch.zeros(5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected a matrix"):
        checked(bias, bias, bias.float(), bias.float(), step=1, lr=1e-3)
