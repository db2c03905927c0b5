"""The trainer: resuming is exact, what is not finite stops it, planted features are found, the saved form is right."""

from __future__ import annotations

import pytest
import torch
from planted import BATCH, RECIPES, TIED, initialise, planted, relative, run, trained, trainer_of, use_autograd

from sae.config import ConfigError, OptimConfig
from sae.models.language import VARIANTS
from sae.training.first_weights import geometric_median
from sae.training.routes import FusedRoute
from sae.training.schedules import annealed, course, default_peak
from sae.training.trainer import Trainer
from sae.training.window import DivergedError

TOPK = {"variant": "topk", "width": 64, "k": 4}


def assert_same_state(ours: Trainer, theirs: Trainer) -> None:
    """Bit for bit."""
    (tensors, values), (others, other_values) = ours.state(), theirs.state()
    assert values == other_values
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.equal(others[name]), name


def test_auxk_moves_the_encoder_rows_of_dead_latents() -> None:
    batches = planted(2)
    trainer = trainer_of(TOPK, steps=2, dead_after=300)
    initialise(trainer, batches)
    trainer.model.b_enc.data[:10] = -100.0
    trainer.model.b_enc.data[10:20] = -2.0
    trainer.model.dictionary.tokens_since_fired[:20] = 10**6
    before = trainer.model.W_enc.detach().clone()
    run(trainer, batches[:1])
    moved = (trainer.model.W_enc.detach() - before).norm(dim=1) > 0
    fired = trainer.model.dictionary.tokens_since_fired == 0
    assert moved[10:20].any(), "AuxK's gradient must reach W_enc"
    assert not moved[:10].any(), "a latent whose pre-activation stays negative has no gradient"
    assert (moved[:20] & ~fired[:20]).any(), "at least one latent moved that was not among the top k"


@pytest.mark.parametrize("name", [n for n in RECIPES if "base" not in RECIPES[n] and n not in TIED])
def test_pre_activation_lifts_dead_latents_until_they_fire(name: str) -> None:
    batches = planted(30)
    settings = {**RECIPES[name], "revival": "pre_activation", "pre_activation_weight": 0.03}
    trainer = trainer_of(settings, steps=30, dead_after=2 * BATCH, optim={"lr": 0.03, "warmup": 0.0})
    initialise(trainer, batches)
    dead = torch.arange(0, 131, 13)
    trainer.model.b_enc.data[dead] -= 3.0
    trainer.model.dictionary.tokens_since_fired[dead] = 10**6
    asleep = trainer.model.b_enc[dead].detach().clone()
    run(trainer, batches)
    assert (trainer.model.b_enc[dead] > asleep).all()


@pytest.mark.parametrize("name", [n for n in VARIANTS if trainer_of(RECIPES[n], steps=1).sparsity is None])
def test_atoms_keep_unit_norm_and_training_explains_more(name: str) -> None:
    batches = planted(100)
    trainer = trainer_of({**RECIPES[name], "width": 96, "k": 4}, steps=100, optim={"lr": 5e-3})
    initialise(trainer, batches)
    run(trainer, batches[:1])
    first = trainer.window()
    run(trainer, batches[1:90])
    trainer.window()
    run(trainer, batches[90:])
    last = trainer.window()
    assert torch.allclose(trainer.model.dictionary.W.norm(dim=1), torch.ones(96), atol=1e-5)
    assert last.fvu < 0.8 * first.fvu
    assert last.l0 == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("name", list(RECIPES))
def test_restoring_continues_bit_identically(name: str) -> None:
    batches = planted(9)
    # dead latents from the third step on, resampling, k and p that change, both sides of the break
    settings = {"k_start": 6, "k_anneal": 0.9} if trainer_of(RECIPES[name], steps=1).sparsity is None else {}
    settings = {} if "target" in name else settings
    make = {"settings": {**RECIPES[name], **settings}, "steps": 9, "dead_after": 2 * BATCH}
    whole = trainer_of(**make)
    initialise(whole, batches)
    run(whole, batches[:5])
    tensors, values = whole.state()
    again = trainer_of(**make)
    again.restore(tensors, values)
    assert_same_state(again, whole)
    run(whole, batches[5:])
    run(again, batches[5:])
    assert_same_state(again, whole)
    ours, theirs = again.finished().state_dict(), whole.finished().state_dict()
    assert all(tensor.equal(theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_trainers_with_one_seed_are_equal_and_another_seed_differs(name: str) -> None:
    batches = planted(4)
    first, again = (trained(RECIPES[name], batches) for _ in range(2))
    assert_same_state(first, again)
    other = trainer_of(RECIPES[name], steps=4)
    other.seed = 1
    initialise(other, batches)
    assert not other.model.W_enc.equal(first.model.W_enc)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_recipe_trains_to_the_same_weights_a_second_time(name: str) -> None:
    batches = planted(4)
    first = trained(RECIPES[name], batches)
    constants = {"dead_after": 10**9, "auxk": 5, "device": torch.device("cpu"), "seed": 0}
    again = Trainer(first.recipe, OptimConfig(lr=3e-3), steps=4, **constants)
    initialise(again, batches)
    assert_same_state(first, run(again, batches))


@pytest.mark.parametrize("route", ["fused", "autograd"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_step_that_is_not_finite_changes_nothing(name: str, route: str, poison: float) -> None:
    batches = planted(3)
    trainer = trainer_of(RECIPES[name], steps=3)
    if route == "autograd":
        use_autograd(trainer)
    initialise(trainer, batches)
    run(trainer, batches[:2])
    before, _ = trainer.state()
    batches[2].x[3, 5] = poison
    batches[2].y[3, 5] = poison
    with pytest.raises(DivergedError, match="step 2: the variance of the inputs is not finite"):
        run(trainer, batches[2:])
    after, values = trainer.state()
    assert values["taken"] == 2
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key


@pytest.mark.parametrize("name", ["gated", "jumprelu", "skip_transcoder"])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str) -> None:
    batches = planted(3)
    trainer = trainer_of(RECIPES[name], steps=3)
    initialise(trainer, batches)
    run(trainer, batches[:2])
    before, _ = trainer.state()
    huge = [batch._replace(x=batch.x.float() * 1e25, y=batch.y.float() * 1e25) for batch in batches]
    with pytest.raises(DivergedError, match=r"step 2: .* is not finite; the step was not taken\. Try a lower --lr"):
        run(trainer, huge[2:])
    after, _ = trainer.state()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key


# --- the saved form ---


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_finished_autoencoder_gives_what_the_trained_one_gives(name: str) -> None:
    batches = planted(20)
    trainer = trained({**RECIPES[name], "k": 4}, batches)
    before, _ = trainer.state()
    finished = trainer.finished()
    after, _ = trainer.state()
    assert all(tensor.equal(after[key]) for key, tensor in before.items()), "finishing leaves the trainer as it was"
    x = torch.cat([batch.x for batch in batches]).float()
    with torch.no_grad():
        trained_codes = trainer.model.encode(trainer.inputs.apply(x))
        codes, reconstruction = finished(x)
        direct = trainer.targets.undo(trainer.model(trainer.inputs.apply(x)).reconstruction)
    # BatchTopK's threshold is settled on the newest inputs, which are all of these
    errors = (reconstruction - direct).norm(dim=1) / direct.norm(dim=1)
    assert errors.quantile(0.99) < 1e-4
    if trainer.model.code.settles:
        assert codes.l0().float().mean().item() == pytest.approx(4, abs=0.01)
    assert codes.l0().float().mean().item() == pytest.approx(trained_codes.l0().float().mean().item(), rel=2e-3)


def test_a_threshold_is_settled_on_the_newest_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.training.trainer.SETTLE_ROWS", 4 * BATCH)
    batches = planted(10)
    trainer = trained({"variant": "batchtopk"}, batches)
    finished = trainer.finished()
    newest = torch.cat([batch.x for batch in batches[-4:]]).float()
    assert finished.encode(newest).l0().sum().item() == pytest.approx(2 * len(newest), abs=2)


def test_scaling_the_inputs_scales_the_folded_model() -> None:
    batches = planted(30)
    folded = []
    for factor in (1.0, 4.0):  # a power of two, so that float32 rounds the same
        scaled = [batch._replace(x=batch.x.float() * factor) for batch in batches]
        folded.append(trained(TOPK, scaled).finished())
    x = batches[0].x.float()
    one, four = folded[0](x), folded[1](4 * x)
    assert relative(four.reconstruction / 4, one.reconstruction) < 1e-5
    assert torch.equal(one.codes.indices, four.codes.indices)


@pytest.mark.parametrize("normalise", ["scale", "centre", "layer_norm", "whiten"])
def test_every_normalisation_trains_to_an_autoencoder_of_plain_activations(normalise: str) -> None:
    batches = planted(120)
    finished = trained({**TOPK, "normalise": normalise}, batches, optim={"lr": 5e-3}).finished()
    x = batches[0].x.float()
    with torch.no_grad():
        error = (finished(x).reconstruction - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.6


def test_tf32_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--compute tf32: expected a GPU"):
        trainer_of(TOPK, steps=1, optim={"compute": "tf32"})


def test_bfloat16_compute_trains_as_well() -> None:
    batches = planted(150)
    windows = {}
    for compute in ("float32", "bfloat16"):
        trainer = trainer_of(TOPK, steps=150, optim={"compute": compute})
        initialise(trainer, batches)
        run(trainer, batches[:100])
        trainer.window()
        run(trainer, batches[100:])
        windows[compute] = trainer.window().fvu
    assert windows["bfloat16"] == pytest.approx(windows["float32"], rel=0.05)


# --- how a run begins ---


@pytest.mark.parametrize("name", ["relu", "p_anneal", "gated", "jumprelu", "jumprelu, target", "transcoder, relu"])
def test_a_penalised_variant_begins_with_few_active_latents(name: str) -> None:
    batches = planted(8)
    trainer = trainer_of(RECIPES[name], steps=8)
    initialise(trainer, batches)
    codes = trainer.model.encode(trainer.inputs.apply(batches[0].x.float()))
    assert codes.l0().float().mean().item() == pytest.approx(4 * 2, rel=0.2)
    assert isinstance(trainer.route, FusedRoute)


def test_pre_bias_is_the_median_of_the_targets() -> None:
    batches = planted(4)
    for name in ("topk", "transcoder"):
        trainer = trainer_of(RECIPES[name], steps=4)
        initialise(trainer, batches)
        y = torch.cat([batch.y if name == "transcoder" else batch.x for batch in batches]).float()
        expected = geometric_median(trainer.targets.apply(y))
        assert torch.allclose(trainer.model.dictionary.b, expected, atol=1e-5)


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


def test_k_falls_from_its_start_and_arrives() -> None:
    ks = [annealed(step, 100, 64, 8, 0.5) for step in range(100)]
    assert ks[0] == 64
    assert ks == sorted(ks, reverse=True)
    assert ks[25] == pytest.approx(36, abs=1)
    assert ks[50:] == [8] * 50
    assert annealed(9, 10, 64, 8, 1.0) == 8, "the last step has the k that was asked for"
    assert annealed(0, 1, 64, 8, 1.0) in (8, 64)


@pytest.mark.parametrize("name", [n for n in VARIANTS if hasattr(trainer_of(RECIPES[n], steps=1).model.code, "k")])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_number_of_active_latents_is_annealed(name: str, share: float) -> None:
    batches = planted(10)
    trainer = trainer_of({**RECIPES[name], "k": 2, "k_start": 8, "k_anneal": share}, steps=10)
    initialise(trainer, batches)
    seen = []
    for batch in batches:
        run(trainer, [batch])
        seen.append(trainer.window().l0)
    assert seen[0] == pytest.approx(8, abs=0.5)
    assert seen[-1] == pytest.approx(2, abs=0.1)
    codes = trainer.finished().encode(torch.cat([batch.x for batch in batches]).float())
    assert codes.l0().float().mean().item() == pytest.approx(2, abs=0.1)
