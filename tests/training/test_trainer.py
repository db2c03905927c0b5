"""The trainer: both routes agree, resuming is exact, what is not finite stops it, a planted dictionary is found."""

from __future__ import annotations

import pytest
import torch

from sae.config import OptimConfig, SAEConfig
from sae.models.language import build, find_variant
from sae.training.routes import AutogradRoute
from sae.training.schedules import course, default_peak
from sae.training.trainer import DivergedError, Trainer, geometric_median

DIM, WIDTH, K, BATCH = 24, 64, 4, 256


def planted_batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Sparse combinations of 48 random unit features, float16 like a store's rows."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(48, DIM, generator=draw), dim=1)
    batches = []
    for _ in range(count):
        codes = torch.zeros(BATCH, 48)
        chosen = torch.rand(BATCH, 48, generator=draw).topk(K).indices
        codes.scatter_(1, chosen, 1 + torch.rand(BATCH, K, generator=draw))
        batches.append((codes @ features + 3.0).half())
    return batches


def make_trainer(steps: int, *, dead_after: int = 10**9, **optim: float) -> Trainer:
    config = SAEConfig(width=WIDTH, k=K)
    return Trainer(
        build(config, DIM),
        find_variant("topk").terms(config),
        OptimConfig(**{"lr": 3e-3, **optim}),
        steps=steps,
        dead_after=dead_after,
        auxk=8,
        device=torch.device("cpu"),
    )


def use_autograd(trainer: Trainer) -> None:
    trainer.route = AutogradRoute(
        trainer.model, trainer.moments, trainer.terms, trainer.config, trainer.auxk, torch.float32
    )


def run(trainer: Trainer, batches: list[torch.Tensor], start: int = 0) -> None:
    for batch in batches[start:]:
        trainer.step(batch, batch)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("clip", [0.0, 0.002], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("dead_after", [10**9, 300], ids=["none dead", "auxk active"])
def test_fused_and_autograd_routes_train_to_the_same_weights(clip: float, dead_after: int) -> None:
    batches = planted_batches(12)
    trainers = [make_trainer(12, dead_after=dead_after, clip=clip) for _ in range(2)]
    use_autograd(trainers[1])
    assert [t.route.name for t in trainers] == ["fused", "autograd"]
    for trainer in trainers:
        trainer.initialise(batches[:4], batches[:4], seed=0)
        if dead_after == 300:
            trainer.model.dictionary.tokens_since_fired[:10] = 10**6
        run(trainer, batches)
    fused, autograd = (dict(t.model.named_parameters()) for t in trainers)
    for name in fused:
        assert relative(fused[name].detach(), autograd[name].detach()) < 2e-4, name
    windows = [t.window() for t in trainers]
    assert windows[0].loss == pytest.approx(windows[1].loss, rel=1e-4)
    assert windows[0].grad_norm == pytest.approx(windows[1].grad_norm, rel=1e-3)
    if dead_after == 300:
        assert windows[0].parts["auxk"] > 0


def test_auxk_moves_the_encoder_rows_of_dead_latents() -> None:
    batches = planted_batches(2)
    trainer = make_trainer(2, dead_after=300)
    trainer.initialise(batches, batches, seed=0)
    trainer.model.b_enc.data[:10] = -100.0
    trainer.model.b_enc.data[10:20] = -0.3
    trainer.model.dictionary.tokens_since_fired[:20] = 10**6
    before = trainer.model.W_enc.detach().clone()
    trainer.step(batches[0], batches[0])
    moved = (trainer.model.W_enc.detach() - before).norm(dim=1) > 0
    fired = trainer.model.dictionary.tokens_since_fired == 0
    assert moved[10:20].any(), "AuxK's gradient must reach W_enc"
    assert not moved[:10].any(), "a latent whose pre-activation stays negative has no gradient"
    assert (moved[:20] & ~fired[:20]).any(), "at least one latent moved that was not among the top k"


def test_atoms_keep_unit_norm_and_training_explains_more() -> None:
    batches = planted_batches(300)
    trainer = make_trainer(300)
    trainer.initialise(batches[:8], batches[:8], seed=0)
    trainer.step(batches[0], batches[0])
    first = trainer.window().fvu
    run(trainer, batches, start=1)
    last = trainer.window().fvu
    assert trainer.model.dictionary.W.norm(dim=1).allclose(torch.ones(WIDTH), atol=1e-5)
    assert last < 0.5 * first


def test_restoring_continues_bit_identically() -> None:
    batches = planted_batches(45)
    whole = make_trainer(45, dead_after=600)
    whole.initialise(batches[:4], batches[:4], seed=0)
    run(whole, batches)
    first = make_trainer(45, dead_after=600)
    first.initialise(batches[:4], batches[:4], seed=0)
    run(first, batches[:23])  # not a multiple of the dead latents' refresh
    tensors, values = first.state()
    second = make_trainer(45, dead_after=600)
    second.restore(tensors, values)
    run(second, batches, start=23)
    expected, got = whole.state(), second.state()
    assert expected[1] == got[1]
    assert expected[0].keys() == got[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(tensor, got[0][name]), name


@pytest.mark.parametrize("route", ["fused", "autograd"])
@pytest.mark.parametrize(
    ("poison", "culprit"), [(float("nan"), "variance of the inputs"), (float("inf"), "variance of the inputs")]
)
def test_a_step_that_is_not_finite_changes_nothing(route: str, poison: float, culprit: str) -> None:
    batches = planted_batches(3)
    trainer = make_trainer(3)
    if route == "autograd":
        use_autograd(trainer)
    trainer.initialise(batches[:2], batches[:2], seed=0)
    run(trainer, batches[:2])
    before = {name: t.clone() for name, t in trainer.state()[0].items()}
    bad = batches[2].clone()
    bad[3, 5] = poison
    with pytest.raises(DivergedError, match=f"step 2: the {culprit} is not finite"):
        trainer.step(bad, bad)
    after, values = trainer.state()
    assert values["taken"] == 2
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_scaling_the_inputs_scales_the_folded_model() -> None:
    batches = planted_batches(30)
    folded = []
    for factor in (1.0, 4.0):  # a power of two, so that float32 rounds the same
        scaled = [batch.float() * factor for batch in batches]
        trainer = make_trainer(30)
        trainer.initialise(scaled[:4], scaled[:4], seed=0)
        run(trainer, scaled)
        folded.append(trainer.model.folded(trainer.scale))
    x = batches[0].float()
    one, four = folded[0](x), folded[1](4 * x)
    assert relative(four.reconstruction / 4, one.reconstruction) < 1e-5
    assert torch.equal(one.codes.indices, four.codes.indices)


def test_folding_changes_no_output() -> None:
    batches = planted_batches(30)
    trainer = make_trainer(30)
    trainer.initialise(batches[:4], batches[:4], seed=0)
    run(trainer, batches)
    x = batches[0].float()
    folded = trainer.model.folded(trainer.scale)
    with torch.no_grad():
        direct = trainer.model(x * trainer.scale).reconstruction / trainer.scale
        assert relative(folded(x).reconstruction, direct) < 1e-5
    assert folded.dictionary.W.norm(dim=1).allclose(torch.ones(WIDTH), atol=1e-5)


def test_bfloat16_compute_keeps_float32_masters_and_trains_as_well() -> None:
    batches = planted_batches(150)
    windows = {}
    for compute in ("float32", "bfloat16"):
        trainer = make_trainer(150, compute=compute)
        trainer.initialise(batches[:4], batches[:4], seed=0)
        run(trainer, batches[:100])
        trainer.window()
        run(trainer, batches, start=100)
        windows[compute] = trainer.window().fvu
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.route.name == "autograd"
    assert windows["bfloat16"] == pytest.approx(windows["float32"], rel=0.05)


def test_geometric_median_withstands_outliers() -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(500, 8, generator=draw) + 2.0
    points[:100] += 1000.0
    assert (geometric_median(points) - 2.0).norm() < 1.5
    line = torch.tensor([[0.0], [1.0], [10.0]])  # the median of three points on a line is the middle one
    assert geometric_median(line).item() == pytest.approx(1.0, abs=1e-3)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [course(step, 100, warmup=0.1, decay=0.2) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10:80] == [1.0] * 70
    assert rates[99] == pytest.approx(1 / 21)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[80:99], rates[81:100], strict=True))
    assert course(999, 10**6, warmup=0.5, decay=0.0) == pytest.approx(1000 / 1001)
    assert course(1000, 10**6, warmup=0.5, decay=0.0) == 1.0


def test_default_rate_joins_short_runs_to_the_published_rule() -> None:
    published = 2e-4  # at 16384 latents
    assert default_peak(16384, 100) == pytest.approx(7 * published)
    assert default_peak(16384, 1500) == pytest.approx(7 * published)
    assert default_peak(16384, 10**6) == pytest.approx(published)
    assert default_peak(65536, 10**6) == pytest.approx(published / 2)
    rates = [default_peak(16384, steps) for steps in (1500, 5000, 20_000, 100_000, 200_000)]
    assert rates == sorted(rates, reverse=True)
