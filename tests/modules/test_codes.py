"""Codes against their formulas, and each straight-through estimate against the smooth function whose slope it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae.config import ConfigError
from sae.modules.codes import CODES, BatchTopK, Code, Gated, JumpReLU, MatchingPursuit, ReLU, TopK, make_code, register
from straight_through import PLACES, THETA, WIDTH, gradients, jump, listed

N, D, F = 37, 11, 53


def inputs(seed: int = 0, rows: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, W_enc with rows of unit norm, b_enc, b_pre."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=draw))
    return torch.randn(rows, D, generator=draw), W, torch.randn(F, generator=draw) - 2, torch.randn(D, generator=draw)


def pre_activations(x: Tensor, W: Tensor, b: Tensor, b_pre: Tensor) -> Tensor:
    return (x - b_pre) @ W.T + b


# --- what they compute ---


def test_relu_is_relu() -> None:
    given = inputs()
    assert torch.allclose(ReLU()(*given).to_dense(), pre_activations(*given).relu(), atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["sparse", "dense"])
def test_jumprelu_is_its_formula_whether_few_or_many_fire(shift: float) -> None:
    x, W, b, b_pre = inputs()
    code = JumpReLU(F, bandwidth=0.3)
    code.theta.data = torch.rand(F, generator=torch.Generator().manual_seed(3))
    pre = pre_activations(x, W, b + shift, b_pre)
    expected = torch.where(pre > code.theta, pre, 0)
    found = code.select(x, W, b + shift, b_pre)
    assert (found.offsets is None) == (shift > 0), "many are kept dense"
    assert torch.allclose(code.activate(found).to_dense(), expected, atol=1e-6)
    if shift == 0:
        # what is learnt lies in the window: both halves of it are listed
        inside = (pre - code.theta).abs() < 0.15
        assert (inside & (pre < code.theta)).any()
        marks = found.with_values(torch.ones_like(found.values)).to_dense()
        assert marks[inside].all()


def test_gated_is_the_paper_s_formula() -> None:
    x, W, b, b_pre = inputs()
    draw = torch.Generator().manual_seed(1)
    r, b_mag = torch.randn(F, generator=draw) * 0.5, torch.randn(F, generator=draw)
    code = Gated(F)
    code.r.data, code.s.data = r, b_mag - r.exp() * b
    # eqs. 5 to 7, with magnitude rows that share the gate's directions
    gate = (x - b_pre) @ W.T + b
    magnitude = (x - b_pre) @ (r.exp().unsqueeze(1) * W).T + b_mag
    expected = (gate > 0).float() * magnitude.relu()
    assert (expected > 0).any()
    assert ((gate > 0) & (magnitude < 0)).any(), "an open gate before no magnitude"
    assert torch.allclose(code(x, W, b, b_pre).to_dense(), expected, atol=1e-5)


def test_topk_keeps_k_of_a_token_and_batchtopk_of_the_batch() -> None:
    given = inputs()
    pre = pre_activations(*given[:2], given[2] + 4, given[3])
    x, W, b, b_pre = given
    top = TopK(3)(x, W, b + 4, b_pre).to_dense()
    assert torch.allclose(top, torch.where(pre >= pre.topk(3).values[:, -1:], pre, 0), atol=1e-6)
    batch = BatchTopK(3)(x, W, b + 4, b_pre).to_dense()
    least = pre.flatten().topk(3 * N).values[-1]
    assert torch.allclose(batch, torch.where(pre >= least, pre, 0), atol=1e-6)


@pytest.mark.parametrize("name", list(CODES))
def test_a_code_s_description_builds_it_again(name: str) -> None:
    settings = {"gated": {"width": F}, "jumprelu": {"width": F}, "quantised": {"width": F, "dim": D}}
    settings |= {kept: {"k": 3} for kept in ("topk", "batchtopk", "matching_pursuit")}
    code = make_code({"name": name, **settings.get(name, {})})
    draw = torch.Generator().manual_seed(0)
    for parameter in code.parameters():
        parameter.data = torch.rand(parameter.shape, generator=draw)
    again = make_code(code.describe())
    again.load_state_dict(code.state_dict())
    assert again.describe() == code.describe()
    x, W, b, b_pre = inputs()
    given = (x, W.repeat(code.rows, 1), b.repeat(code.rows), b_pre)
    assert again(*given).to_dense().equal(code(*given).to_dense())


def test_names_are_unique_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match="'topk' is registered already"):
        register(type("Other", (Code,), {"name": "topk"}))
    with pytest.raises(ConfigError, match="code 'jumprelo' is unknown; did you mean 'jumprelu'"):
        make_code({"name": "jumprelo"})


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_rescaled_scales_each_latent_by_its_own_factor(name: str) -> None:
    x, W, b, b_pre = inputs()
    code = make_code({"name": name} if name == "relu" else {"name": name, "width": F})
    draw = torch.Generator().manual_seed(0)
    for parameter in code.parameters():
        parameter.data = torch.rand(parameter.shape, generator=draw)
    factors = 0.5 + torch.rand(F, generator=draw)
    other = code.rescaled(factors)
    assert other is not None
    scaled = other(x, W * factors.unsqueeze(1), b * factors, b_pre).to_dense()
    plain = code(x, W, b, b_pre).to_dense()
    assert (plain > 0).sum() > 20
    assert torch.allclose(scaled, plain * factors, atol=1e-5)


def test_a_selection_is_rescaled_by_one_factor_for_all_only() -> None:
    factors = torch.full((F,), 3.0)
    for code in (TopK(3), BatchTopK(3), MatchingPursuit(3)):
        assert code.rescaled(factors) is code
        assert code.rescaled(torch.arange(1.0, F + 1)) is None


# --- straight-through estimates ---

INSIDE = [abs(pre - THETA) < WIDTH / 2 for pre in PLACES]


@pytest.mark.parametrize("of_values", [True, False])
def test_both_halves_of_the_window_count_and_nothing_outside_does(of_values: bool) -> None:
    found, _ = gradients(of_values)
    assert (found != 0).tolist() == INSIDE
    below = torch.tensor([pre < THETA for pre in PLACES])
    height = -(THETA if of_values else 1.0) / WIDTH
    assert found[below].sum().item() == pytest.approx(4 * height)
    assert found[~below].sum().item() == pytest.approx(4 * height)


def test_by_the_pre_activation_the_gradient_is_the_true_one() -> None:
    _, by_pre = gradients(of_values=True)
    assert by_pre is not None
    assert by_pre.tolist() == [float(pre > THETA) for pre in PLACES]
    _, by_pre = gradients(of_values=False)
    assert by_pre is None, "a count of latents says nothing of how large they are"


@pytest.mark.parametrize("of_values", [True, False])
def test_an_estimate_that_goes_through_reaches_the_pre_activation_with_the_other_sign(of_values: bool) -> None:
    """The jump depends on pre - θ alone, so what moves θ up moves pre down."""
    code, pre = JumpReLU(len(PLACES), bandwidth=WIDTH, theta=THETA, through=True), torch.tensor(PLACES)
    entries = listed(pre.requires_grad_())
    out = code.activate(entries).values if of_values else code.steps(entries)
    by_theta, by_pre = torch.autograd.grad(out.sum(), [code.theta, pre])
    above = torch.tensor([float(of_values and place > THETA) for place in PLACES])
    assert torch.allclose(by_pre, above - by_theta)
    assert by_theta.equal(gradients(of_values)[0]), "θ learns as it did"


@pytest.mark.parametrize("of_values", [True, False])
def test_a_window_looked_at_in_some_tokens_gives_the_same_estimate_on_average(of_values: bool) -> None:
    x, W, b, b_pre = inputs()
    x = x.repeat_interleave(4, dim=0)  # so that a fourth of the tokens are all there are
    theta = 0.2 + torch.rand(F, generator=torch.Generator().manual_seed(3))
    found = []
    for every in (1, 4):
        code = JumpReLU(F, bandwidth=0.6, through=True, every=every)
        code.theta.data = theta.clone()
        weights = W.clone().requires_grad_()
        entries = code.select(x, weights, b, b_pre)
        assert entries.offsets is not None
        # a function of value and place, alike for copies of one token
        out = code.activate(entries).values if of_values else code.steps(entries)
        by_theta, by_W = torch.autograd.grad((out * torch.cos(1.0 * entries.indices)).sum(), [code.theta, weights])
        found.append((entries, code.activate(entries).to_dense(), by_theta, by_W))
    (all_of_it, values, by_theta, by_W), (some, same_values, other_theta, other_W) = found
    below, fewer = ((entries.values <= theta[entries.indices]).sum().item() for entries in (all_of_it, some))
    assert below == 4 * fewer > 0
    assert same_values.equal(values), "what is active is listed in every token"
    ascending = some.rows() * F + some.indices
    assert (ascending.diff() > 0).all()
    assert torch.allclose(other_theta, by_theta, rtol=1e-4, atol=1e-5)
    assert torch.allclose(other_W, by_W, rtol=1e-3, atol=1e-4)


def test_a_code_that_is_not_trained_has_no_gradient_by_its_threshold() -> None:
    code, pre = jump(0.0), torch.tensor(PLACES, requires_grad=True)
    code.activate(listed(pre)).values.sum().backward()
    assert code.theta.grad is None
    assert pre.grad is not None


def test_thresholds_learn_in_float32_from_half_precision_entries() -> None:
    code, pre = jump(), torch.tensor(PLACES).bfloat16().requires_grad_()
    values = code.activate(listed(pre)).values
    assert values.dtype == torch.bfloat16
    values.sum().backward()
    assert code.theta.dtype == torch.float32
    assert code.theta.grad is not None
    assert code.theta.grad.dtype == torch.float32


def test_the_gate_has_no_gradient_through_its_step() -> None:
    pre = torch.tensor([-0.5, 0.4, 1.5], requires_grad=True)
    code = Gated(3)
    code.r.data, code.s.data = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([5.0, 0.2, -9.0])
    values = code.activate(listed(pre)).values
    by_pre, by_r, by_s = torch.autograd.grad(values.sum(), [pre, code.r, code.s])
    slope = math.exp(-0.2)
    # latent 0 is shut, however large its magnitude; latent 2 is open and has none
    assert by_pre.tolist() == pytest.approx([0, slope, 0])
    assert by_r.tolist() == pytest.approx([0, 0.4 * slope, 0])
    assert by_s.tolist() == [0, 1, 0]


# --- the form that is saved ---


@pytest.mark.parametrize("rows", [N, 300])
@pytest.mark.parametrize("k", [1, 4])
def test_batchtopk_settles_on_the_threshold_at_which_k_fire_on_average(rows: int, k: int) -> None:
    given = inputs(rows=rows)
    training = BatchTopK(k)
    saved = training.settled(*given)
    assert isinstance(saved, JumpReLU)
    assert saved.theta.unique().numel() == 1
    ours, theirs = saved(*given), training(*given)
    assert ours.l0().sum() == k * rows
    assert ours.to_dense().equal(theirs.to_dense())


def test_a_settled_threshold_is_never_below_zero() -> None:
    x, W, b, b_pre = inputs()
    saved = BatchTopK(F).settled(x, W, b, b_pre)
    assert isinstance(saved, JumpReLU)
    assert saved.theta.min() >= 0
    assert saved(x, W, b, b_pre).to_dense().equal(BatchTopK(F)(x, W, b, b_pre).to_dense())


@pytest.mark.parametrize("code", [ReLU(), TopK(2), Gated(F), JumpReLU(F), MatchingPursuit(2)], ids=lambda c: c.name)
def test_codes_of_single_tokens_are_saved_as_they_are(code: Code) -> None:
    assert code.settled(*inputs()) is code
    assert not code.settles


# --- pursuit ---


def brute_pursuit(x: Tensor, W: Tensor, k: int) -> tuple[Tensor, list[list[int]]]:
    """Dense codes of k greedy steps, token by token, differentiable; and the atoms in order."""
    rows, orders = [], []
    for token in x:
        residual, taken, code = token, [], torch.zeros(W.shape[0])
        for _ in range(k):
            products = W @ residual
            masked = products.detach().clone()
            masked[taken] = -torch.inf
            best = int(masked.argmax())
            value = products[best].relu()
            code = code + value * torch.nn.functional.one_hot(torch.tensor(best), W.shape[0])
            residual = residual - value * W[best]
            taken.append(best)
        rows.append(code)
        orders.append(taken)
    return torch.stack(rows), orders


def test_matching_pursuit_and_its_gradient_equal_a_loop() -> None:
    x, W, b, b_pre = inputs(rows=9)
    leaves = [t.clone().requires_grad_() for t in (x, W, b_pre)]
    codes = MatchingPursuit(4)(leaves[0], leaves[1], b, leaves[2])
    others = [t.clone().requires_grad_() for t in (x, W, b_pre)]
    expected, orders = brute_pursuit(others[0] - others[2], others[1], 4)
    assert codes.indices.tolist() == orders
    assert torch.allclose(codes.to_dense(), expected, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad(
        (codes.to_dense() @ leaves[1] - leaves[0]).square().sum() + (codes.to_dense() * weights).sum(), leaves
    )
    theirs = torch.autograd.grad((expected @ others[1] - others[0]).square().sum() + (expected * weights).sum(), others)
    for a, c in zip(ours, theirs, strict=True):
        assert torch.allclose(a, c, rtol=1e-4, atol=1e-4)


def test_matching_pursuit_gives_the_same_codes_with_and_without_a_gradient() -> None:
    given = inputs()
    learning = MatchingPursuit(5)(*(t.requires_grad_() for t in given))
    with torch.no_grad():
        plain = MatchingPursuit(5)(*given)
    assert plain.indices.equal(learning.indices)
    assert torch.allclose(plain.values, learning.values, atol=1e-5)
