"""Loss terms against their formulas, brute force and finite differences; where gradients go and where they do not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from passes import replaced
from torch import Tensor

from sae.config import ConfigError
from sae.modules.codes import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.modules.losses import TERMS, Term, find_term, term, total_loss
from sae.modules.penalties import BLOCK, SMALL
from sae.modules.views import VIEWS, Entries, Everything, Output, frozen_error
from sae_kernels import SparseCodes, sparse_decode

ROOT = Path(__file__).parents[2]
N, D, F = 12, 7, 20
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def make_step(code: Any = None, *, seed: int = 0, dead: list[int] | None = None, **changed: Any) -> Everything:
    """One step of an autoencoder with random weights, its parameters leaves."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=draw)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D, generator=draw)).requires_grad_()
    W_enc = torch.randn(F, D, generator=draw).requires_grad_()
    b_enc = (0.3 * torch.randn(F, generator=draw)).requires_grad_()
    b_dec = (0.3 * torch.randn(D, generator=draw)).requires_grad_()
    code = code or ReLU()
    listed = code.select(x, W_enc, b_enc, b_dec)
    codes = code.activate(listed)
    entries = Entries(
        code=code,
        listed=listed,
        codes=codes,
        dim=D,
        frozen_error=partial(frozen_error, target=x, W_dec=W_dec, b_dec=b_dec),
    )
    decoded = sparse_decode(codes, W_dec, b_dec)
    everything = Everything(
        entries=entries,
        output=Output(target=x, reconstruction=decoded),
        x=x,
        decoded=decoded,
        W_enc=W_enc,
        b_enc=b_enc,
        b_pre=b_dec,
        W_dec=W_dec,
        b_dec=b_dec,
        dead=torch.tensor(dead or [], dtype=torch.int64),
        auxk=3,
        site_widths=[D],
    )
    return replaced(everything, **changed)


def with_values(values: Tensor, **changed: Any) -> Everything:
    """A step whose codes [n, F'] are these, all entries listed."""
    codes = SparseCodes(values, torch.arange(values.shape[1]).expand_as(values), values.shape[1])
    return make_step(codes=codes, listed=codes, target=torch.zeros(len(values), D), **changed)


def gradients(step: Everything, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, [getattr(step, name) for name in PARAMETERS], allow_unused=True)
    pairs = zip(PARAMETERS, found, strict=True)
    return {name: torch.zeros_like(getattr(step, name)) if g is None else g for name, g in pairs}


# --- the table ---


def test_terms_are_known_by_name_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss term 'aukx' is unknown; did you mean 'auxk'\? \(known: auxk, "):
        find_term("aukx")
    with pytest.raises(ConfigError, match="'auxk' is registered already"):
        term(find_term("auxk").function)
    assert TERMS["contrast"].view is Entries


def test_a_term_whose_first_parameter_names_no_view_is_refused() -> None:
    def bare(entries) -> Tensor:
        return entries.codes.values

    def other(step: Tensor) -> Tensor:
        return step

    def late(entries: Unimported) -> Tensor:  # type: ignore[name-defined]  # noqa: F821
        return entries

    def nothing() -> Tensor:
        return torch.zeros(1)

    expected = "expected one of Entries, DeadRows, Reconstructions, Output, Everything"
    for function, got in ((bare, "no annotation"), (other, "Tensor"), (nothing, "no annotation")):
        with pytest.raises(ConfigError, match=rf"'{function.__name__}': the annotation .*{expected} .*, got {got}"):
            term(function)
    with pytest.raises(ConfigError, match="loss term 'late': name 'Unimported' is not defined"):
        term(late)
    assert not {"bare", "other", "late", "nothing"} & TERMS.keys()


OUTSIDE = {
    "Entries": "reconstruction",
    "DeadRows": "target",
    "Reconstructions": "codes",
    "Output": "codes",
    "Everything": "optimizer",
}
"""View -> something that it does not have."""


def test_a_term_that_reads_outside_its_view_does_not_type_check(tmp_path: Path) -> None:
    assert OUTSIDE.keys() == VIEWS.keys()
    lines = ["from sae.modules.views import " + ", ".join(VIEWS), "from sae.modules.losses import term"]
    for view, attribute in OUTSIDE.items():
        lines += ["@term", f"def reads_{attribute}_of_{view}(view: {view}):", f"    return view.{attribute}"]
    lines += ["@term", "def fits(entries: Entries):", "    return entries.codes.per_token(entries.codes.values)"]
    (tmp_path / "terms.py").write_text("\n".join(lines))
    settings = {"extraPaths": [str(ROOT), str(ROOT / "kernels")], "venvPath": str(ROOT), "venv": ".venv"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "basic", **settings}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [found["message"] for found in json.loads(done.stdout)["generalDiagnostics"]]
    assert len(errors) == len(OUTSIDE), errors
    for (view, attribute), error in zip(OUTSIDE.items(), errors, strict=True):
        assert f'Cannot access attribute "{attribute}" for class "{view}"' in error


@pytest.mark.parametrize("view", VIEWS)
def test_a_term_that_reads_outside_its_view_raises(view: str) -> None:
    with pytest.raises(AttributeError, match=rf"'{view}' object has no attribute '{OUTSIDE[view]}'"):
        getattr(make_step(dead=[1, 5]).view(VIEWS[view]), OUTSIDE[view])


def test_the_loss_is_the_weighted_sum_of_means() -> None:
    step = make_step()
    loss, parts = total_loss([Term("squared_error", 2.0), Term("l1", 0.5)], step)
    error, l1 = (
        (step.x - step.output.reconstruction).square().sum(1).mean(),
        step.entries.codes.to_dense().sum(1).mean(),
    )
    assert parts["squared_error"].item() == pytest.approx(error.item(), rel=1e-5)
    assert loss.item() == pytest.approx(2 * error.item() + 0.5 * l1.item(), rel=1e-5)
    assert not parts["l1"].requires_grad


@pytest.mark.parametrize("name", ["squared_error", "l1", "lp", "gate_l1", "gate_error", "auxk", "pre_activation"])
def test_terms_give_one_value_a_token(name: str) -> None:
    step = make_step(Gated(F), dead=[1, 5])
    assert Term(name).values(step).shape == (N,)
    assert torch.isfinite(Term(name).values(step)).all()


# --- penalties ---


def test_l1_and_tanh_are_their_formulas_weighted_by_the_atoms_norms() -> None:
    values, norms = torch.tensor([[0.0, 0.5, 2.0], [1.0, 0.0, 3.0]]), torch.tensor([1.0, 2.0, 0.5])
    plain, weighted = with_values(values), with_values(values, norms=norms)
    assert Term("l1").values(plain).tolist() == [2.5, 4.0]
    assert Term("l1").values(weighted).tolist() == [2.0, 2.5]
    for step, factors in ((plain, torch.ones(3)), (weighted, norms)):
        expected = (4 * values * factors).double().tanh().sum(1).tolist()
        assert Term("tanh", 1.0, {"scale": 4.0}).values(step).tolist() == pytest.approx(expected, rel=1e-5)


def test_lp_takes_the_power_of_what_an_atom_of_its_norm_adds() -> None:
    values, norms = torch.tensor([[0.0, 0.5, 2.0], [0.004, 0.0, 3.0]]), torch.tensor([1.0, 2.0, 0.5])
    step = with_values(values, norms=norms, power=0.5)
    expected = [1.0 + 1.0, 0.004 * SMALL**-0.5 + 1.5**0.5]
    assert Term("lp").values(step).tolist() == pytest.approx(expected, rel=1e-5)


def test_lp_is_continuous_and_straight_below_its_knee() -> None:
    for p in (1.0, 0.5, 0.2):
        f = torch.tensor([[0.0, SMALL / 2, SMALL * 0.999999, SMALL * 1.000001, 0.3]], requires_grad=True)
        parts = [with_values(f[:, i : i + 1], power=p) for i in range(5)]
        values = [Term("lp").values(step).item() for step in parts]
        assert values[0] == 0
        assert values[1] == pytest.approx(SMALL**p / 2, rel=1e-4)
        assert values[2] == pytest.approx(values[3], rel=1e-4), "no jump at the knee"
        assert values[4] == pytest.approx(0.3**p, rel=1e-5)
        (slope,) = torch.autograd.grad(Term("lp").values(with_values(f, power=p)).sum(), f)
        assert slope[0, :3].tolist() == pytest.approx([SMALL ** (p - 1)] * 3, rel=1e-4)
        assert slope[0, 4].item() == pytest.approx(p * 0.3 ** (p - 1), rel=1e-4)


def test_gate_l1_counts_the_gate_and_not_the_magnitude() -> None:
    code = Gated(F)
    code.s.data.fill_(5.0)
    step = make_step(code)
    pre = (step.x - step.b_dec) @ step.W_enc.T + step.b_enc
    assert torch.allclose(Term("gate_l1").values(step), pre.relu().sum(1), atol=1e-5)
    norms = torch.linspace(0.5, 2.0, F)
    weighted = Term("gate_l1").values(replaced(step, norms=norms))
    assert torch.allclose(weighted, (pre.relu() * norms).sum(1), atol=1e-4)


def test_l0_counts_latents_and_l0_target_their_distance_from_it() -> None:
    code = JumpReLU(F, bandwidth=0.5, theta=0.4)
    step = make_step(code)
    pre = (step.x - step.b_dec) @ step.W_enc.T + step.b_enc
    count = (pre > 0.4).sum(1)
    assert Term("l0").values(step).tolist() == count.tolist()
    far = (count.float().mean().item() / 3 - 1) ** 2
    target = Term("l0_target", 1.0, {"target": 3.0})
    assert target.values(step).tolist() == pytest.approx([far * D] * N, rel=1e-5)
    # its slope is that of l0 times 2 d (L0 / target - 1) / target
    (of_count,) = torch.autograd.grad(Term("l0").values(step).mean(), code.theta)
    (of_target,) = torch.autograd.grad(target.values(make_step(code)).mean(), code.theta)
    assert (of_count != 0).any()
    assert torch.allclose(of_target, of_count * 2 * D * (count.float().mean() / 3 - 1) / 3, atol=1e-5)


@pytest.mark.parametrize("norms", [None, torch.linspace(0.5, 2.0, F)])
def test_the_slope_of_tanh_by_thresholds_is_that_of_the_smoothed_penalty(norms: Tensor | None) -> None:
    code = JumpReLU(F, bandwidth=0.5, theta=0.4)
    step = make_step(code, norms=norms)
    pre = ((step.x - step.b_dec) @ step.W_enc.T + step.b_enc).detach().double()
    values = Term("tanh", 1.0, {"scale": 4.0}).values(step)
    factors = torch.ones(F) if norms is None else norms
    expected = torch.where(pre > 0.4, (4 * pre * factors).tanh(), 0).sum(1)
    assert torch.allclose(values.double(), expected, rtol=1e-4)
    by_theta, by_b_enc = torch.autograd.grad(values.sum(), [code.theta, step.b_enc])
    # the mean over pre-activations blurred by the window, a token and latent at a time
    u = torch.linspace(-0.25, 0.25, 4001, dtype=torch.float64)
    blurred = (pre.unsqueeze(-1) + u) * factors.unsqueeze(-1)
    height = torch.tanh(4 * blurred)

    def smoothed(theta: float) -> Tensor:
        return torch.where(pre.unsqueeze(-1) + u > theta, height, 0).mean(-1).sum(0)

    slope = (smoothed(0.405) - smoothed(0.395)) / 0.01
    assert (slope != 0).any()
    assert torch.allclose(by_theta.double(), slope, rtol=0.02, atol=0.02)
    # by the pre-activations the true one
    true = torch.where(pre > 0.4, 4 * factors * (1 - (4 * pre * factors).tanh() ** 2), 0).sum(0)
    assert torch.allclose(by_b_enc.double(), true, rtol=1e-3, atol=1e-4)


def test_an_l0_penalty_moves_thresholds_alone() -> None:
    step = make_step(JumpReLU(F, bandwidth=0.5, theta=0.4))
    assert all(not g.any() for g in gradients(step, Term("l0").values(step).mean()).values())
    with pytest.raises(ValueError, match="needs a code with a threshold; got 'relu'"):
        Term("l0").values(make_step())


# --- reconstructions ---


@pytest.mark.parametrize("prefixes", [[20], [3, 20], [1, 2, 9, 20]])
def test_nested_error_is_the_mean_over_prefixes_of_whole_reconstructions(prefixes: list[int]) -> None:
    step = make_step(BatchTopK(4))
    other = make_step(BatchTopK(4))
    dense = other.entries.codes.to_dense()
    errors = [(other.x - other.b_dec - dense[:, :m] @ other.W_dec[:m]).square().sum(1) for m in prefixes]
    values, expected = Term("nested_error", 1.0, {"prefixes": prefixes}).values(step), torch.stack(errors).mean(0)
    assert torch.allclose(values, expected, rtol=1e-5)
    ours, theirs = gradients(step, values.mean()), gradients(other, expected.mean())
    for name in PARAMETERS:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


def test_gate_error_learns_the_gate_before_a_frozen_dictionary() -> None:
    step = make_step(Gated(F))
    pre = (step.x - step.b_dec) @ step.W_enc.T + step.b_enc
    values = Term("gate_error").values(step)
    expected = (step.x - step.b_dec.detach() - pre.relu() @ step.W_dec.detach()).square().sum(1)
    assert torch.allclose(values, expected, rtol=1e-4)
    ours = gradients(step, values.mean())
    assert not ours["W_dec"].any()
    assert ours["W_enc"].any()
    other = make_step(Gated(F))
    pre = (other.x - other.b_dec) @ other.W_enc.T + other.b_enc
    frozen = (other.x - other.b_dec.detach() - pre.relu() @ other.W_dec.detach()).square().sum(1)
    theirs = gradients(other, frozen.mean())
    for name in PARAMETERS:
        # of b_dec what is left is its part in the gate's inputs
        assert torch.allclose(ours[name], theirs[name], atol=1e-4), name


# --- dead latents ---

DEAD = [2, 5, 11, 17, 19]


def test_auxk_is_the_residual_s_reconstruction_by_the_top_dead_latents() -> None:
    step = make_step(TopK(2), dead=DEAD)
    residual = (step.x - step.output.reconstruction).detach()
    pre = ((step.x - step.b_dec) @ step.W_enc.T + step.b_enc)[:, DEAD]
    estimate = torch.zeros(N, D)
    for n in range(N):
        for j in pre[n].topk(3).indices.tolist():
            estimate[n] += pre[n, j].relu().detach() * step.W_dec[DEAD[j]].detach()
    variance = (residual - residual.mean(0)).square().sum(1).mean()
    values = Term("auxk").values(step)
    assert torch.allclose(values, (residual - estimate).square().sum(1) / variance, rtol=1e-4)


def test_auxk_reaches_the_rows_of_dead_latents_and_not_the_residual() -> None:
    step = make_step(TopK(2), dead=DEAD)
    found = gradients(step, Term("auxk").values(step).mean())
    alive = [j for j in range(F) if j not in DEAD]
    for name in ("W_enc", "b_enc", "W_dec"):
        assert found[name][DEAD].any(), name
        assert not found[name][alive].any(), f"{name}: the residual has a gradient"
    # b_dec: as the encoder's pre-bias alone, never through the residual
    through = -(found["b_enc"] @ step.W_enc.detach())
    assert torch.allclose(found["b_dec"], through, atol=1e-5)


def test_auxk_is_zero_without_dead_latents_or_without_variance() -> None:
    assert not Term("auxk").values(make_step(TopK(2))).any()
    step = make_step(TopK(2), dead=DEAD)
    same = replaced(step, reconstruction=step.output.target.clone())
    values = Term("auxk").values(same)
    assert values.tolist() == [0.0] * N


@pytest.mark.parametrize("theta", [0.0, 0.7])
def test_pre_activation_pulls_dead_latents_to_their_threshold(theta: float) -> None:
    code = JumpReLU(F, bandwidth=0.1, theta=theta)
    step = make_step(code, dead=DEAD, site_widths=[3, 4])
    norms = (step.W_dec[DEAD, :3].norm(dim=1) + step.W_dec[DEAD, 3:].norm(dim=1)).detach()
    pre = ((step.x - step.b_dec) @ step.W_enc.T + step.b_enc)[:, DEAD]
    values = Term("pre_activation").values(step)
    assert torch.allclose(values, ((theta - pre).relu() * norms).sum(1), rtol=1e-4)
    found = gradients(step, values.mean())
    below = (pre < theta).float().mean(0) * norms
    assert torch.allclose(found["b_enc"][DEAD], -below, atol=1e-5), "a step down the gradient lifts them"
    alive = [j for j in range(F) if j not in DEAD]
    assert not found["W_enc"][alive].any()
    assert not Term("pre_activation").values(make_step(code)).any()


# --- contrast ---

CONTRAST = Term("contrast", 1.0, {"latents": 4, "temperature": 0.1})


def pairs_of(z: Tensor, adjacent: list[bool]) -> Everything:
    return with_values(z, adjacent=torch.tensor(adjacent))


def test_contrast_of_equal_neighbours_among_orthogonal_others() -> None:
    # z_a = z_b of each pair, orthogonal to the other pair: -log(e^10 / (e^10 + 1)), both ways
    z = torch.tensor([[2.0, 0, 0, 0, 9], [1.0, 0, 0, 0, 0], [0, 0, 3.0, 0, 0], [0, 0, 1.0, 0, 5]])
    values = CONTRAST.values(pairs_of(z, [True, True]))
    assert values.tolist() == pytest.approx([math.log1p(math.exp(-10))] * 4, rel=1e-3)
    # each is its neighbour's opposite: -log(1 / (1 + e^10))
    swapped = CONTRAST.values(pairs_of(z[[0, 2, 3, 1]], [True, True]))
    assert swapped.tolist() == pytest.approx([math.log1p(math.exp(10))] * 4, rel=1e-5)


def test_contrast_looks_at_the_upper_latents_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(8, 6, generator=draw)
    other = torch.cat([z[:, :4], torch.rand(8, 2, generator=draw)], 1)
    assert CONTRAST.values(pairs_of(z, [True] * 4)).equal(CONTRAST.values(pairs_of(other, [True] * 4)))


def test_pairs_that_are_no_neighbours_count_zero_and_are_no_negatives() -> None:
    z = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    kept = CONTRAST.values(pairs_of(z, [True, False, True, False]))
    alone = CONTRAST.values(pairs_of(z[[0, 1, 4, 5]], [True, True]))
    assert kept[[2, 3, 6, 7]].tolist() == [0.0] * 4
    assert kept[[0, 1, 4, 5]].tolist() == pytest.approx(alone.tolist())
    leaf = z.clone().requires_grad_()
    CONTRAST.values(pairs_of(leaf, [True, False, True, False])).mean().backward()
    assert leaf.grad is not None
    assert not leaf.grad[[2, 3, 6, 7]].any()
    assert leaf.grad[[0, 1, 4, 5]].any()


def test_more_pairs_than_a_block_are_contrasted_block_by_block_and_keep_their_places() -> None:
    z = torch.rand(2 * 600, 4, generator=torch.Generator().manual_seed(0))
    adjacent = torch.arange(600) % 5 != 0  # 480 pairs: a block of 256 and one of 224
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    first, second = unit[0::2][adjacent], unit[1::2][adjacent]
    expected = []
    for low, high in ((0, BLOCK), (BLOCK, 480)):
        scores = (first[low:high] @ second[low:high].T / 0.1).exp()
        own = scores.diagonal()
        expected.append(-((own / scores.sum(1)).log() + (own / scores.sum(0)).log()) / 2)
    wanted = torch.zeros(600, dtype=torch.float64)
    wanted[adjacent] = torch.cat(expected)
    found = CONTRAST.values(pairs_of(z, adjacent.tolist()))
    assert torch.allclose(found.double(), wanted.repeat_interleave(2), rtol=1e-4)


def test_contrast_without_any_neighbours_is_zero() -> None:
    z = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = CONTRAST.values(pairs_of(z, [False] * 4))
    assert values.tolist() == [0.0] * 8
    values.mean().backward()


def test_contrast_of_empty_codes_is_finite() -> None:
    z = torch.zeros(4, 6, requires_grad=True)
    values = CONTRAST.values(pairs_of(z, [True, True]))
    assert values.tolist() == pytest.approx([math.log(2)] * 4)
    values.mean().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_contrast_of_shuffled_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="contrast: expected batches of neighbouring tokens; got shuffled rows"):
        CONTRAST.values(make_step())
