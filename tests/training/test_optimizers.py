"""Every optimizer trains, keeps atoms at unit norm and resumes exactly; dead latents are made anew and then live."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from planted import BATCH, RECIPES, Pair, initialise, planted, run, trained, trainer_of

from sae.config import ConfigError, OptimConfig
from sae.training.optimizers import check_optimizer, make_optimizer
from sae.training.revival import ENCODER_SHARE, resample
from sae.training.trainer import Trainer

OPTIMIZERS = ["adam", "signsgd", "muon"]
TOPK = {"variant": "topk", "width": 96, "k": 4}
OTHERS = ["topk", "gated", "jumprelu", "matching_pursuit", "skip_transcoder"]


def held_out_fvu(trainer: Trainer, batches: list[Pair]) -> float:
    """Of the form that is saved."""
    x = torch.cat([batch.x for batch in batches]).float()
    with torch.no_grad():
        error = (trainer.finished()(x).reconstruction - x).square().sum()
    return (error / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_learns_the_planted_features(optimizer: str) -> None:
    batches = planted(150)
    trainer = trainer_of(TOPK, steps=140, optim={"optimizer": optimizer, "lr": None})
    initialise(trainer, batches)
    before = held_out_fvu(trainer, batches[140:]) if optimizer != "signsgd" else 1.0
    run(trainer, batches[:140])
    assert torch.allclose(trainer.model.dictionary.W.norm(dim=1), torch.ones(96), atol=1e-5)
    assert torch.allclose(trainer.finished().dictionary.W.norm(dim=1), torch.ones(96), atol=1e-5)
    assert held_out_fvu(trainer, batches[140:]) < min(0.3, 0.7 * before)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_is_bit_identical(optimizer: str, name: str) -> None:
    batches = planted(8)
    make = {"settings": RECIPES[name], "steps": 8, "dead_after": 2 * BATCH, "optim": {"optimizer": optimizer}}
    whole, again = trainer_of(**make), trainer_of(**make)
    initialise(whole, batches)
    run(whole, batches[:5])
    again.restore(*whole.state())
    for trainer in (whole, again):
        run(trainer, batches[5:])
    (tensors, values), (others, other_values) = whole.state(), again.state()
    assert values == other_values
    assert tensors.keys() == others.keys()
    assert all(tensor.equal(others[key]) for key, tensor in tensors.items())
    finished = again.finished().state_dict()
    assert all(tensor.equal(finished[key]) for key, tensor in whole.finished().state_dict().items())


@pytest.mark.parametrize("optimizer", ["signsgd", "muon"])
def test_a_step_that_is_not_finite_is_skipped(optimizer: str) -> None:
    trainer = trained(TOPK, planted(2), optim={"optimizer": optimizer})
    before, _ = trainer.state()
    gradients = {name: torch.ones_like(p) for name, p in trainer.model.named_parameters()}
    trainer.optimizer.step(gradients, step=3, lr=0.1, scale=torch.tensor(torch.nan))
    after, _ = trainer.state()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_adam_without_its_package_says_how_to_get_it() -> None:
    config = OptimConfig(optimizer="adam8bit")
    for refuse in (check_optimizer, lambda c: make_optimizer(trainer_of(TOPK, steps=1).model, c, 0.9)):
        with pytest.raises(ConfigError, match="adam8bit: needs a package; install it with: pip install bitsandbytes"):
            refuse(config)


def test_jumprelu_s_thresholds_learn_at_their_own_rate() -> None:
    slow, fast = (trainer_of(RECIPES["jumprelu, wide"], steps=20) for _ in range(2))
    slow.model.code.rate, fast.model.code.rate = 1.0, 10.0
    moved = []
    for trainer in (slow, fast):
        initialise(trainer, planted(4))
        before = trainer.model.get_parameter("code.theta").detach().clone()
        run(trainer, planted(1))
        moved.append((trainer.model.get_parameter("code.theta") - before).abs().max().item())
    assert moved[1] > 5 * moved[0] > 0


# --- resampling ---


def with_dead(name: str, optimizer: str = "adam", dead: int = 30) -> Trainer:
    trainer = trained(
        {**RECIPES[name], "revival": "resample"},
        planted(3),
        dead_after=10**8,
        steps=100,
        optim={"optimizer": optimizer},
    )
    trainer.model.dictionary.tokens_since_fired[:dead] = 10**9
    if not trainer.model.code.tied:
        trainer.model.b_enc.data[:dead] = -100.0
    return trainer


@pytest.mark.parametrize("name", ["relu", "gated", "topk", "jumprelu", "transcoder", "crosscoder", "matching_pursuit"])
def test_resampled_latents_point_at_the_worst_inputs(name: str) -> None:
    trainer = with_dead(name)
    model, batch = trainer.model, planted(1, seed=3)[0]
    x = trainer.inputs.apply(batch.x.float())
    target = trainer.targets.apply(batch.y.float()) if model.transcodes else x
    error = torch.zeros(BATCH)
    error[[5, 9, 70]] = 1.0
    before = model.W_enc.detach().clone()
    resample(model, torch.arange(30), x, target, error, torch.Generator().manual_seed(0))
    atoms = torch.nn.functional.normalize(target[[5, 9, 70]] - model.dictionary.b, dim=1)
    cosines = model.dictionary.W[:30] @ atoms.T
    assert torch.allclose(cosines.max(1).values, torch.ones(30), atol=1e-5)
    assert set(cosines.argmax(1).tolist()) == {0, 1, 2}, "drawn by the error"
    assert model.W_enc[30:].equal(before[30:]), "the living stay"
    if not model.code.tied:
        length = ENCODER_SHARE * before[30:].norm(dim=1).mean()
        assert torch.allclose(model.W_enc[:30].norm(dim=1), length.expand(30), rtol=1e-4)
        assert not model.b_enc[:30].any()
    assert not model.dictionary.dead(10**8).any()
    fired = model.encode(x).to_dense()[[5, 9, 70]][:, :30]
    if not hasattr(model.code, "k"):  # whose choice leaves room for few
        assert (fired > 0).any(0).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_a_resampled_latent_starts_without_a_past(name: str, optimizer: str) -> None:
    trainer = with_dead(name, optimizer)
    trainer.dead_after = BATCH  # the next step resamples
    run(trainer, planted(1, seed=5))
    assert not trainer.model.dictionary.dead(BATCH).any()
    tensors = trainer.optimizer.tensors
    for key, tensor in tensors.items():
        kind, parameter = key.split(".", 1)
        if parameter in ("dictionary.b", "W_skip") or not tensor.ndim:
            continue
        expected = trainer.model.get_parameter(parameter)[:30] if kind in "zx" else torch.zeros_like(tensor[:30])
        assert tensor[:30].equal(expected), key
    atoms = trainer.model.dictionary.W[:30].detach().clone()
    trainer.dead_after = 10**8
    run(trainer, planted(1, seed=6))
    cosines = (trainer.model.dictionary.W[:30] * atoms).sum(1)
    assert (cosines > 0.8).all(), "the next step goes on from there"


@pytest.mark.parametrize("name", ["relu", "matching_pursuit"])
def test_resampling_is_decided_by_the_seed(name: str) -> None:
    found = []
    for seed in (0, 0, 1):
        trainer = with_dead(name)
        trainer.seed, trainer.dead_after = seed, BATCH
        found.append(run(trainer, planted(1, seed=5)).model.dictionary.W.detach().clone())
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_a_bias_as_wide_as_the_dictionary_keeps_its_moments() -> None:
    trainer = with_dead("relu", dead=5)
    square = trained({**RECIPES["relu"], "width": trainer.model.dim, "k": 2, "revival": "resample"}, planted(3))
    before = square.optimizer.tensors["m.dictionary.b"].clone()
    assert before.all()
    square.optimizer.forget(torch.arange(5))
    assert square.optimizer.tensors["m.dictionary.b"].equal(before)
    assert not square.optimizer.tensors["m.W_enc"][:5].any()


def test_errors_that_say_nothing_draw_evenly_and_no_dead_latent_changes_nothing() -> None:
    trainer = with_dead("relu")
    model, x = trainer.model, trainer.inputs.apply(planted(1)[0].x.float())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    resample(model, torch.zeros(0, dtype=torch.int64), x, x, torch.ones(BATCH), torch.Generator())
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
    for error in (torch.zeros(BATCH), torch.full((BATCH,), torch.nan)):
        resample(model, torch.arange(30), x, x, error, torch.Generator().manual_seed(0))
        assert torch.isfinite(model.dictionary.W).all()
        assert len(model.dictionary.W[:30].unique(dim=0)) > 15


FORMATS = {
    "moments in bf16": {"moments": "bfloat16"},
    "moments in 8 bits": {"moments": "int8"},
    "weights in bf16": {"weights": "bfloat16"},
    "both": {"weights": "bfloat16", "moments": "int8"},
}


@pytest.mark.parametrize("name", ["topk", "skip_transcoder", "relu"])
@pytest.mark.parametrize("optim", FORMATS.values(), ids=list(FORMATS))
def test_state_in_fewer_bits_trains_as_well_and_resumes_bit_identically(name: str, optim: dict[str, str]) -> None:
    batches = planted(60)
    settings = {**RECIPES[name], "width": 96, "k": 4}
    whole, exact = (trainer_of(settings, steps=60, optim=o) for o in (optim, {}))
    for trainer in (whole, exact):
        initialise(trainer, batches)
        run(trainer, batches[:50])
        trainer.window()
    moments = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}[
        optim.get("moments", "float32")
    ]
    for key, tensor in whole.optimizer.tensors.items():
        assert tensor.dtype == (moments if tensor.ndim == 2 else torch.float32), key
    weights = torch.bfloat16 if "weights" in optim else torch.float32
    assert {whole.model.W_enc.dtype, whole.model.dictionary.W.dtype} == {weights}
    again = trainer_of(settings, steps=60, optim=optim)
    again.restore(*whole.state())
    for trainer in (whole, exact, again):
        run(trainer, batches[50:])
    assert whole.window().fvu == pytest.approx(
        exact.window().fvu, rel=0.05 if optim == FORMATS["moments in bf16"] else 0.1
    )
    tensors, others = whole.state()[0], again.state()[0]
    assert all(tensor.equal(others[key]) for key, tensor in tensors.items())
    finished = whole.finished()
    assert {p.dtype for p in finished.parameters()} == {torch.float32}
    if name == "topk":
        torch.testing.assert_close(finished.dictionary.W.norm(dim=1), torch.ones(96))


def test_a_resampled_latent_of_weights_in_bf16_starts_without_a_past() -> None:
    optim = {"weights": "bfloat16", "moments": "int8"}
    trainer = trained({**RECIPES["relu"], "revival": "resample"}, planted(3), dead_after=10**8, steps=100, optim=optim)
    trainer.model.dictionary.tokens_since_fired[:30] = 10**9
    trainer.model.b_enc.data[:30] = -100.0
    before = trainer.model.dictionary.W.detach().clone()
    trainer.dead_after = BATCH
    run(trainer, planted(1, seed=5))
    assert trainer.model.dictionary.W.dtype == torch.bfloat16
    assert (trainer.model.dictionary.W[:30] != before[:30]).any(1).all()
    for key in ("m.W_enc", "v.W_enc", "m.dictionary.W", "v.dictionary.W"):
        assert not trainer.optimizer.tensors[key][:30].any()


@pytest.mark.parametrize(
    ("settings", "optim", "message"),
    [
        (
            {"variant": "matching_pursuit"},
            {},
            "--weights bfloat16: needs the fused step, .* variant matching_pursuit",
        ),
        ({}, {"compute": "bfloat16"}, "fused step, .* variant topk with products in bfloat16 on a cpu"),
    ],
)
def test_weights_in_bf16_are_refused_where_the_fused_step_does_not_take_them(
    settings: dict[str, str], optim: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(settings, steps=1, optim={"weights": "bfloat16", **optim})


@pytest.mark.parametrize("optimizer", ["signsgd", "muon", "adam8bit"])
def test_only_adam_takes_state_in_fewer_bits(optimizer: str) -> None:
    assert {"moments", "weights"} <= OptimConfig(optimizer=optimizer).ignored().keys()  # type: ignore[arg-type]
    assert not OptimConfig().ignored()
