"""The weight of a penalty: it brings L0 to what was asked for and keeps it there, or is what it was fixed to."""

from __future__ import annotations

import pytest
import torch
from planted import RECIPES, initialise, planted, run, trained, trainer_of
from torch import Tensor

from sae.training.sparsity import P_CHANGES, P_END, Sparsity
from sae_kernels import SparseCodes

CPU = torch.device("cpu")


def codes_of(values: Tensor) -> SparseCodes:
    return SparseCodes(values, torch.arange(values.shape[1]).expand_as(values), values.shape[1])


def active(l0: int, width: int = 100) -> SparseCodes:
    """Four tokens with `l0` active latents each."""
    values = torch.zeros(4, width)
    values[:, :l0] = 1.0
    return codes_of(values)


def make(penalty: str = "l1", **changed: object) -> Sparsity:
    settings = {"steps": 100, "warmup": 0.2, "target": 10.0, "fixed": None, "device": CPU, **changed}
    return Sparsity(penalty, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("lr", [None, 5e-3])
@pytest.mark.parametrize(
    ("name", "steps"),
    [("relu", 300), ("relu, tanh", 300), ("gated", 300), ("jumprelu", 600), ("jumprelu, anthropic", 300)],
)
def test_l0_reaches_the_target_and_stays(name: str, steps: int, lr: float | None) -> None:
    batches = planted(100)
    trainer = trainer_of({**RECIPES[name], "width": 96, "l0_target": 4.0}, steps=steps, optim={"lr": lr})
    initialise(trainer, batches)
    found = []
    for begin in range(0, steps, 25):
        run(trainer, batches[begin % 100 : begin % 100 + 25])
        found.append(trainer.window().l0)
    late = found[-steps // 75 :]
    assert found[0] > 8, "the run begins with more"
    assert sum(late) / len(late) == pytest.approx(4.0, rel=0.05)
    assert all(l0 == pytest.approx(4.0, rel=0.3) for l0 in late)
    saved = trainer.finished().encode(torch.cat([batch.x for batch in batches[:20]]).float())
    assert saved.l0().float().mean().item() == pytest.approx(4.0, rel=0.1), "in the saved form as well"


def test_the_target_is_k_unless_it_is_given() -> None:
    for settings, target in (({}, 3.0), ({"l0_target": 9.0}, 9.0)):
        sparsity = trainer_of({"variant": "relu", "k": 3, **settings}, steps=1).sparsity
        assert sparsity is not None
        assert sparsity.target == target
    for name, settings in RECIPES.items():
        trainer = trainer_of(settings, steps=1)
        term = trainer.sparsity.penalty if trainer.sparsity else None
        assert term is None or term in [t.name for t in trainer.terms], name


@pytest.mark.parametrize("l0", [5, 20])
def test_pressure_answers_the_error_and_grows_while_it_lasts(l0: int) -> None:
    sparsity = make()
    weights = []
    for _ in range(100):
        sparsity.observe(active(l0))
        weights.append(sparsity.weight().item())
    late = weights[20:60]
    assert all((b > a) == (l0 > 10) for a, b in zip(late, late[1:], strict=False))
    for _ in range(1000):
        sparsity.observe(active(l0))
    assert 1e-6 < sparsity.weight().item() < 1e4, "a penalty that cannot reach its aim stays bounded"
    on_target = make()
    for _ in range(100):
        on_target.observe(active(10))
    assert on_target.weight().item() == pytest.approx(make().weight().item(), rel=1e-5)


def test_the_aim_falls_over_the_warm_up() -> None:
    # from 80 to 10, geometrically
    followed, too_early = make(), make()
    for step in range(20):
        aim = 80 * (10 / 80) ** (step / 20)
        followed.observe(active(round(aim)))
        too_early.observe(active(80 if step == 0 else 10))
    assert too_early.weight() < followed.weight(), "fewer than the aim: less pressure"


def test_no_latent_active_at_all_is_no_catastrophe() -> None:
    sparsity = make()
    for _ in range(50):
        sparsity.observe(active(0))
    assert torch.isfinite(sparsity.weight())
    assert sparsity.weight() < make().weight()


def test_a_fixed_weight_rises_and_stays() -> None:
    sparsity = make(target=None, fixed=3.0)
    weights = []
    for step in range(30):
        weights.append(sparsity.weight().item())
        sparsity.observe(active(90 - step))
    assert weights[:20] == pytest.approx([3.0 * (step + 1) / 20 for step in range(20)])
    assert weights[20:] == [3.0] * 10
    assert make(target=None, fixed=3.0, warmup=0.0).weight().item() == 3.0
    trainer = trained({"variant": "relu", "sparsity": 0.7, "sparsity_warmup": 0.0}, planted(3))
    assert trainer.window().sparsity == pytest.approx(0.7)


@pytest.mark.parametrize("fixed", [2.0, None])
def test_annealing_p_keeps_the_penalty_of_the_batch(fixed: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    sparsity = make("lp", fixed=fixed, target=None if fixed else 20.0, warmup=0.0)
    powers = [sparsity.power]
    for _ in range(100):
        # large enough that each summand is f^p
        codes = codes_of(torch.rand(8, 20, generator=draw) + 0.05)
        scale, power = sparsity.values["scale"].item(), sparsity.power
        sparsity.observe(codes)
        before, after = codes.values.double().pow(power).sum(), codes.values.double().pow(sparsity.power).sum()
        assert scale * before.item() == pytest.approx(sparsity.values["scale"].item() * after.item(), rel=1e-9)
        powers.append(sparsity.power)
    assert powers[0] == 1.0
    assert powers[30] == 1.0, "the first third is plain L1"
    assert powers[-1] == pytest.approx(P_END)
    assert powers[70] == pytest.approx(P_END), "the last third has the last p"
    assert powers == sorted(powers, reverse=True)
    assert len(set(powers)) == P_CHANGES + 1


def test_only_a_penalty_with_a_power_anneals_it() -> None:
    sparsity = make("l1")
    for _ in range(100):
        sparsity.observe(active(5))
    assert sparsity.power == 1.0
    assert sparsity.values["scale"].item() == 1.0


@pytest.mark.parametrize("penalty", ["l1", "lp"])
@pytest.mark.parametrize("fixed", [0.5, None])
def test_restoring_goes_on_bit_identically(penalty: str, fixed: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    batches = [codes_of(torch.randn(8, 20, generator=draw).relu()) for _ in range(90)]
    settings = {"fixed": fixed, "target": None if fixed else 5.0}
    whole, first, second = (make(penalty, **settings) for _ in range(3))
    for codes in batches:
        whole.observe(codes)
    for codes in batches[:47]:
        first.observe(codes)
    tensors, values = first.state()
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    for codes in batches[47:]:
        second.observe(codes)
    assert second.weight().item() == whole.weight().item()
    assert second.power == whole.power
    assert all(tensor.equal(whole.values[name]) for name, tensor in second.values.items())
