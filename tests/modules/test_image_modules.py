"""The codes, terms and corruptions of image autoencoders against closed forms, Monte Carlo and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from passes import replaced
from torch import Tensor

from sae.base import draws
from sae.config import ConfigError
from sae.modules.codes import Gaussian, Identity, Quantised, Sigmoid
from sae.modules.corruption import CORRUPTIONS, corrupt
from sae.modules.dictionary import Dictionary
from sae.modules.divergences import gaussian_log_density, kl_per_latent
from sae.modules.likelihoods import bernoulli_nll, gaussian_nll
from sae.modules.losses import Term, find_term, total_loss
from sae.modules.views import Entries, Everything, Output
from sae_kernels import SparseCodes

N, D, F = 23, 9, 5


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_of(
    code: Any, pre: Tensor, *, target: Tensor | None = None, outputs: Tensor | None = None, **more: Any
) -> Everything:
    """A step whose encoder gave `pre` [N, rows F], on a target in [0, 1] and outputs of a head."""
    listed = SparseCodes.dense(pre)
    zero = torch.zeros(0)
    everything = Everything(
        entries=Entries(code=code, listed=listed, codes=code.activate(listed), dim=pre.shape[1]),
        output=Output(target=torch.sigmoid(rows(len(pre), D, seed=8)), reconstruction=rows(len(pre), D, seed=9)),
        x=pre,
        decoded=zero,
        W_enc=zero,
        b_enc=zero,
        b_pre=None,
        W_dec=zero,
        b_dec=zero,
        dead=torch.zeros(0, dtype=torch.int64),
        auxk=1,
        site_widths=[D],
    )
    return replaced(everything, **more)


def values_of(name: str, everything: Everything, **settings: Any) -> Tensor:
    """A term's values, one a sample."""
    return Term(name, settings=settings).values(everything)


# --- the Gaussian code and its divergence ---


def test_the_divergence_from_the_prior_equals_its_monte_carlo_estimate() -> None:
    mean, log_variance = rows(4, F), 0.7 * rows(4, F, seed=1)
    noise = rows(200_000, 4, F, seed=2)
    z = mean + (0.5 * log_variance).exp() * noise
    zero = torch.zeros(())
    log_ratio = gaussian_log_density(z, mean, log_variance) - gaussian_log_density(z, zero, zero)
    estimate, error = log_ratio.mean(0), log_ratio.std(0) / math.sqrt(len(noise))
    exact = kl_per_latent(mean, log_variance)
    assert ((estimate - exact).abs() < 5 * error).all()
    assert (exact >= 0).all()


def test_the_divergence_is_zero_at_the_prior_alone() -> None:
    code = Gaussian()
    at_prior = step_of(code, torch.zeros(3, 2 * F))
    assert values_of("gaussian_kl", at_prior).tolist() == [0, 0, 0]
    assert (values_of("gaussian_kl", step_of(code, rows(3, 2 * F))) > 0).all()


def test_the_gradient_through_a_draw_is_that_of_finite_differences() -> None:
    code = Gaussian()
    pre = rows(2, 2 * F).double().requires_grad_()

    def f(given: Tensor) -> Tensor:
        z = code.sample(SparseCodes.dense(given), draws.generator(3)).values
        return (z.sin() * z).sum()

    (gradient,) = torch.autograd.grad(f(pre), pre)
    for i in (0, 3, F, 2 * F - 1):
        change = torch.zeros_like(pre)
        change[1, i] = 1e-3  # moments are float32
        slope = (f(pre + change) - f(pre - change)).item() / 2e-3
        assert gradient[1, i].item() == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_a_draw_has_the_moments_it_is_told_and_activate_gives_the_mean() -> None:
    code = Gaussian()
    pre = torch.tensor([1.5, -2.0, math.log(0.25), math.log(4.0)]).repeat(100_000, 1)
    listed = SparseCodes.dense(pre)
    z = code.sample(listed, draws.generator(0)).values
    assert torch.allclose(z.mean(0), torch.tensor([1.5, -2.0]), atol=0.03)
    assert torch.allclose(z.std(0), torch.tensor([0.5, 2.0]), rtol=0.02)
    assert code.activate(listed).to_dense().equal(pre[:, :2])
    assert code.sample(listed, draws.generator(0)).values.equal(z), "the same generator, the same draw"


def test_log_variances_are_clamped() -> None:
    pre = torch.tensor([[0.0, 50.0], [0.0, -50.0]])
    assert Gaussian().moments(SparseCodes.dense(pre))[1].flatten().tolist() == [12.0, -12.0]


def test_free_bits_make_a_latent_below_them_cost_a_constant_without_gradient() -> None:
    pre = torch.zeros(N, 2 * F)
    pre[:, 0] = 3.0  # KL 4.5 nats; the others 0
    pre.requires_grad_()
    step = step_of(Gaussian(), pre)
    values = values_of("gaussian_kl", step, free_bits=0.5)
    assert values.tolist() == pytest.approx([4.5 + 0.5 * (F - 1)] * N)
    (gradient,) = torch.autograd.grad(values.sum(), pre)
    assert gradient[:, 0].tolist() == pytest.approx([3.0] * N)
    assert gradient[:, 1:F].abs().max() == 0


def test_capacity_rises_over_the_run_and_pulls_from_both_sides() -> None:
    step = step_of(Gaussian(), rows(N, 2 * F))
    kl = values_of("gaussian_kl", step).mean().item()
    for progress, at in ((0.0, 0.0), (0.25, 2.5), (1.0, 10.0)):
        values = values_of("capacity", replaced(step, progress=progress), nats=10.0)
        assert values.shape == (N,)
        assert values[0].item() == pytest.approx(abs(kl - at), rel=1e-5)


def test_total_correlation_of_the_estimator_equals_brute_force() -> None:
    pre = rows(6, 2 * F)
    z = rows(6, F, seed=4)
    step = replaced(step_of(Gaussian(), pre), codes=SparseCodes.dense(z))
    mean, log_variance = pre[:, :F], pre[:, F:]
    expected = []
    for n in range(6):
        density = torch.stack(
            [torch.distributions.Normal(mean[m], (0.5 * log_variance[m]).exp()).log_prob(z[n]).exp() for m in range(6)]
        )
        joint = density.prod(1).sum() / (6 * 50)
        marginals = density.sum(0) / (6 * 50)
        expected.append((joint.log() - marginals.log().sum()).item())
    found = values_of("total_correlation", step, samples=50)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


# --- likelihoods ---


def test_the_chapter_s_squared_error_is_the_gaussian_of_variance_one_half() -> None:
    step = step_of(Identity(), rows(N, F))
    squared, constant = values_of("squared_error", step), 0.5 * D * math.log(math.pi)
    gaussian = values_of("gaussian", step, variance=0.5)
    assert torch.allclose(gaussian, squared + constant, rtol=1e-6)


def test_likelihoods_are_those_of_the_distributions() -> None:
    x, logits = torch.sigmoid(rows(N, D)).round(), rows(N, D, seed=1)
    exact = -torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
    assert torch.allclose(bernoulli_nll(logits, x), exact, rtol=1e-5)
    normal = -torch.distributions.Normal(logits, math.sqrt(0.3)).log_prob(x).sum(1)
    assert torch.allclose(gaussian_nll((x - logits).square().sum(1), D, 0.3), normal, rtol=1e-5)


def test_a_bernoulli_wants_logits() -> None:
    step = step_of(Identity(), rows(N, F))
    with pytest.raises(ValueError, match="expected a head whose outputs are logits"):
        values_of("bernoulli", step)
    values = values_of("bernoulli", replaced(step, squashed=True))
    assert torch.allclose(values, bernoulli_nll(step.output.reconstruction, step.output.target))
    assert torch.allclose(
        values_of("squared_error", replaced(step, squashed=True)),
        (step.output.target - torch.sigmoid(step.output.reconstruction)).square().sum(1),
    )


# --- rates ---


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_rate_kl_is_the_divergence_of_bernoullis_and_zero_at_the_rate(rate: float) -> None:
    logit = math.log(rate / (1 - rate))
    step = step_of(Sigmoid(), torch.full((N, F), logit))
    assert values_of("rate_kl", step, rate=rate).abs().max() < 1e-5
    off = step_of(Sigmoid(), rows(N, F))
    found = off.entries.codes.values.mean(0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(torch.full((F,), rate)), torch.distributions.Bernoulli(found)
    ).sum()
    assert values_of("rate_kl", off, rate=rate).tolist() == pytest.approx([exact.item()] * N, rel=1e-5)


def test_a_running_mean_gives_the_value_and_the_batch_the_gradient() -> None:
    pre = rows(N, F).requires_grad_()
    running = torch.full((F,), 0.4)
    step = step_of(Sigmoid(), pre, running=running)
    value = values_of("rate_kl", step, rate=0.05)
    exact = 0.05 * math.log(0.05 / 0.4) + 0.95 * math.log(0.95 / 0.6)
    assert value[0].item() == pytest.approx(F * exact, rel=1e-5)
    (gradient,) = torch.autograd.grad(value[0], pre)
    slope = (-0.05 / 0.4 + 0.95 / 0.6) / N
    f = torch.sigmoid(pre.detach())
    assert torch.allclose(gradient, slope * f * (1 - f), rtol=1e-4)


def test_an_unbounded_code_has_no_rate() -> None:
    with pytest.raises(ValueError, match=r"expected a code between 0 and 1 \(sigmoid\); got 'identity'"):
        values_of("rate_kl", step_of(Identity(), rows(N, F)), rate=0.05)


# --- codebooks ---


def codebook(width: int = 7, momentum: float = 0.99) -> tuple[Quantised, Dictionary]:
    dictionary = Dictionary(width, D, unit=False)
    dictionary.initialise(torch.Generator().manual_seed(0))
    dictionary.W.data.copy_(rows(width, D, seed=5))
    dictionary.b.data.zero_()
    return Quantised(width, D, momentum), dictionary


def test_a_row_gets_its_nearest_atom() -> None:
    code, dictionary = codebook()
    x = rows(N, D)
    codes = code(x, dictionary.W, dictionary.b, None)
    nearest = torch.cdist(x, dictionary.W).argmin(1)
    assert codes.indices.flatten().equal(nearest)
    assert dictionary.decode(codes).equal(dictionary.W[nearest])


def test_the_gradient_passes_straight_through_to_the_row() -> None:
    code, dictionary = codebook()
    x = rows(N, D).requires_grad_()
    decoded = dictionary.decode(code(x, dictionary.W, dictionary.b, None))
    passed = code.pass_through(decoded, x)
    assert torch.allclose(passed, decoded, atol=1e-6)
    weights = rows(N, D, seed=3)
    (gradient,) = torch.autograd.grad((passed * weights).sum(), x)
    assert gradient.equal(weights)


def test_commitment_moves_rows_and_the_codebook_term_moves_atoms() -> None:
    code, dictionary = codebook(momentum=0.0)
    x = rows(N, D).requires_grad_()
    codes = code(x, dictionary.W, dictionary.b, None)
    decoded = dictionary.decode(codes)
    step = replaced(step_of(Identity(), rows(N, F)), x=x, code=code, codes=codes, decoded=decoded)
    distance = (x - dictionary.W[codes.indices.flatten()]).square().sum(1)
    for name, moved, still in (("commitment", x, dictionary.W), ("codebook", dictionary.W, x)):
        values = values_of(name, step)
        assert torch.allclose(values, distance, rtol=1e-5)
        found = torch.autograd.grad(values.sum(), [moved, still], allow_unused=True, retain_graph=True)
        assert found[0] is not None
        assert found[0].abs().max() > 0
        assert found[1] is None or found[1].abs().max() == 0


def test_moving_averages_settle_on_the_means_of_the_rows_that_choose_an_atom() -> None:
    code, dictionary = codebook(width=3, momentum=0.8)
    centres = 10 * torch.eye(3, D)
    x = centres[torch.arange(300) % 3] + 0.1 * rows(300, D)
    code.begin(x[:3], dictionary, draws.generator(0))
    for step in range(40):
        codes = code(x, dictionary.W, dictionary.b, None)
        code.learn(x, codes, dictionary, draws.generator(step))
    means = torch.stack([x[torch.arange(300) % 3 == i].mean(0) for i in range(3)])
    assert torch.cdist(means, dictionary.W.detach()).min(1).values.max() < 0.02


def test_counts_of_moving_averages_are_smoothed_after_laplace_and_keep_their_sum() -> None:
    code, dictionary = codebook(width=3, momentum=0.5)
    code.resets = False
    code.count.copy_(torch.tensor([4.0, 2e-5, 0.0]))
    code.sum.copy_(rows(3, D, seed=6))
    dictionary.W.data[1:] = 1e3  # the rows choose the first
    x = rows(6, D)
    code.learn(x, code(x, dictionary.W, dictionary.b, None), dictionary, draws.generator(0))
    counts = [2.0 + 3.0, 1e-5, 0.0]
    sums = [0.5 * rows(3, D, seed=6)[0] + 0.5 * x.sum(0), *(0.5 * rows(3, D, seed=6)[1:])]
    for atom, count, total in zip(dictionary.W.detach(), counts, sums, strict=True):
        smoothed = (count + 1e-5) / (sum(counts) + 3e-5) * sum(counts)
        assert torch.allclose(atom, total / smoothed, rtol=1e-4)


def test_forgotten_atoms_are_put_on_rows() -> None:
    code, dictionary = codebook(width=4, momentum=0.8)
    x = rows(64, D)
    code.begin(x, dictionary, draws.generator(0))
    dictionary.W.data[2] = 1e3  # no row is near
    for step in range(40):
        code.learn(x, code(x, dictionary.W, dictionary.b, None), dictionary, draws.generator(step))
    assert dictionary.W[2].norm() < 20
    assert len(code(x, dictionary.W, dictionary.b, None).indices.unique()) == 4


# --- sums over the rows of a sample, weights that rise ---


def test_a_term_of_several_rows_a_sample_is_summed_over_them() -> None:
    code, dictionary = codebook()
    x = rows(3 * 4, D)
    codes = code(x, dictionary.W, dictionary.b, None)
    step = replaced(step_of(Identity(), rows(3, F)), x=x, code=code, codes=codes, decoded=dictionary.decode(codes))
    values = Term("commitment").values(step)
    by_row = find_term("commitment").function(step)
    assert values.tolist() == pytest.approx([by_row[4 * n : 4 * n + 4].sum().item() for n in range(3)])


def test_a_weight_rises_from_zero_over_its_warm_up() -> None:
    term = Term("gaussian_kl", 4.0, warmup=0.5)
    assert [term.at(p).weight for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 2.0, 4.0, 4.0]
    assert Term("gaussian_kl", 4.0).at(0.0).weight == 4.0


def test_every_term_is_one_number_a_sample_and_the_loss_their_mean() -> None:
    step = step_of(Gaussian(), rows(N, 2 * F), squashed=True)
    loss, parts = total_loss([Term("bernoulli"), Term("gaussian_kl", 4.0)], step)
    by_hand = (
        bernoulli_nll(step.output.reconstruction, step.output.target).mean()
        + 4 * kl_per_latent(*Gaussian().moments(step.entries.listed)).sum(1).mean()
    )
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert set(parts) == {"bernoulli", "gaussian_kl"}


# --- corruption ---


def test_gaussian_noise_has_its_level_and_touches_all() -> None:
    x = torch.full((200, 500), 0.5)
    noisy, where = corrupt("gaussian", 0.3, x, draws.generator(0))
    assert (noisy - x).std().item() == pytest.approx(0.3, rel=0.02)
    assert where.all()


@pytest.mark.parametrize(("name", "ends"), [("masking", {0.0}), ("salt_and_pepper", {0.0, 1.0})])
def test_a_share_of_pixels_is_replaced_and_the_rest_left_alone(name: str, ends: set[float]) -> None:
    x = torch.full((200, 500), 0.5)
    noisy, where = corrupt(name, 0.2, x, draws.generator(0))
    assert where.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert noisy[~where].unique().tolist() == [0.5]
    assert set(noisy[where].unique().tolist()) == ends
    if len(ends) == 2:
        assert noisy[where].mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruption_is_a_function_of_its_generator(name: str) -> None:
    x = torch.rand(5, 30)
    assert corrupt(name, 0.2, x, draws.generator(1)).x.equal(corrupt(name, 0.2, x, draws.generator(1)).x)
    assert not corrupt(name, 0.2, x, draws.generator(1)).x.equal(corrupt(name, 0.2, x, draws.generator(2)).x)


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(ConfigError, match="--corruption 'gausian' is unknown; did you mean 'gaussian'"):
        corrupt("gausian", 0.2, torch.zeros(1, 1), draws.generator(0))


def test_error_where_corrupted_counts_nothing_else() -> None:
    where = torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.5
    step = step_of(Identity(), rows(N, F), corrupted=where)
    values = values_of("squared_error_where_corrupted", step)
    assert torch.allclose(values, ((step.output.target - step.output.reconstruction).square() * where).sum(1))
    with pytest.raises(ValueError, match="expected corrupted inputs"):
        values_of("squared_error_where_corrupted", replaced(step, corrupted=None))
