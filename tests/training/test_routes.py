"""Both routes take the same steps, whatever the variant: every code, term and place that is read or written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import (
    BASES,
    RECIPES,
    Pair,
    initialise,
    note_dense_steps,
    planted,
    relative,
    run,
    trainer_of,
    use_autograd,
)
from torch import Tensor

from sae.models.language import VARIANTS
from sae.modules import divergences, likelihoods  # noqa: F401  registers their terms
from sae.modules.losses import TERMS, Term
from sae.modules.losses import term as register
from sae.modules.views import DeadRows, Entries, Reconstructions
from sae.training.routes import FusedRoute
from sae.training.trainer import Trainer

STEPS = 5
# Adam's epsilon is large here, as a gradient that is all rounding error would else move its weight by a whole step
EPS = 1e-3


def fused_and_autograd(
    settings: dict[str, Any], batches: list[Pair], *, terms: list[Term] | None = None, **optim: Any
) -> tuple[Trainer, Trainer, list[int]]:
    """Two trainers after the same steps, and the steps at which the fused one went through autograd after all."""
    trainers = []
    dense: list[int] = []
    for name in ("fused", "autograd"):
        trainer = trainer_of(settings, steps=20, dead_after=1000, optim={"eps": EPS, **optim}, terms=terms)
        if name == "autograd":
            use_autograd(trainer)
        assert trainer.route.name == name
        initialise(trainer, batches)
        if isinstance(trainer.route, FusedRoute):
            note_dense_steps(trainer.route, dense)
        with torch.no_grad():
            if trainer.sparsity is None and trainer.model.code.name in ("jumprelu", "gated"):
                trainer.model.b_enc.sub_(2.5)  # else half of all latents fire at the start
            trainer.model.dictionary.tokens_since_fired[::7] = 10**6
            trainer.model.b_enc[::7] -= 0.5
        trainers.append(run(trainer, batches))
    return trainers[0], trainers[1], dense


def assert_same_steps(fused: Trainer, autograd: Trainer) -> float:
    """Weights, moments, and what is logged; returns the gradient's mean norm."""
    ours, theirs = fused.state()[0], autograd.state()[0]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not name.startswith("model.") or tensor.is_floating_point():
            assert relative(tensor.double(), theirs[name].double()) < 1e-4, name
    assert ours["model.dictionary.tokens_since_fired"].equal(theirs["model.dictionary.tokens_since_fired"])
    window, other = fused.window(), autograd.window()
    assert window.parts == pytest.approx(other.parts, rel=1e-4, abs=1e-6)
    for name in ("loss", "fvu", "l0", "grad_norm", "dead"):
        assert getattr(window, name) == pytest.approx(getattr(other, name), rel=1e-4), name
    return window.grad_norm


def is_fused(settings: dict[str, Any]) -> bool:
    return trainer_of(settings, steps=1).route.name == "fused"


FUSED = [name for name, settings in RECIPES.items() if is_fused(settings)]
REVIVALS = ["auxk", "pre_activation"]


def test_every_single_site_variant_with_an_encoder_is_fused() -> None:
    expected = {name for name in BASES}
    expected |= {name for name, row in VARIANTS.items() if row.transcodes or row.several_sites}
    assert expected <= set(FUSED)
    for settings in ({"compute": "bfloat16"}, {"optimizer": "signsgd"}, {"optimizer": "muon"}):
        assert trainer_of({}, steps=1, optim=settings).route.name == "autograd"


@pytest.mark.parametrize(
    ("name", "revival"), [(n, r) for n in RECIPES for r in REVIVALS if is_fused({**RECIPES[n], "revival": r})]
)
def test_the_same_steps_with_dead_latents(name: str, revival: str) -> None:
    # the penalised ones start at four times L0: 0.06 of all latents, few enough to be listed
    batches = planted(STEPS)
    fused, autograd, dense = fused_and_autograd({**RECIPES[name], "revival": revival, "dead_after": 1000}, batches)
    assert_same_steps(fused, autograd)
    if "anthropic" not in name or "narrow" in name:
        assert not dense, "these steps were to be fused"


@pytest.mark.parametrize("name", FUSED)
def test_the_same_steps_where_the_gradient_is_clipped(name: str) -> None:
    fused, autograd, _ = fused_and_autograd(RECIPES[name], planted(STEPS), clip=0.02)
    norm = assert_same_steps(fused, autograd)
    assert norm > 0.02 * fused.model.dim, "clipping was active"


@pytest.mark.parametrize("name", [n for n in FUSED if trainer_of(RECIPES[n], steps=1).sparsity is not None])
def test_the_same_steps_while_codes_are_dense_at_first(name: str) -> None:
    # 4 x 16 of 131 latents fire at the start, half of all: too many to list
    batches = planted(8)
    settings = {**RECIPES[name], "k": 16, "sparsity": 3.0, "sparsity_warmup": 0.0}
    fused, autograd, dense = fused_and_autograd(settings, batches, lr=3e-2)
    assert dense[:1] == [1]
    assert_same_steps(fused, autograd)


@pytest.mark.parametrize("rows", [2, 34])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name in FUSED])
def test_batches_of_odd_sizes(name: str, rows: int) -> None:
    batches = planted(4) + planted(3, seed=1, rows=rows)
    assert_same_steps(*fused_and_autograd(RECIPES[name], batches)[:2])


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_steps_in_bfloat16_with_float32_masters(name: str) -> None:
    batches = planted(3)
    trainers: list[Trainer] = []
    for compute in ("float32", "bfloat16"):
        trainer = trainer_of(RECIPES[name], steps=20, dead_after=1000, optim={"compute": compute})
        initialise(trainer, batches)
        trainer.model.dictionary.tokens_since_fired[::7] = 10**6
        trainers.append(run(trainer, batches))
    assert {p.dtype for p in trainers[1].model.parameters()} == {torch.float32}
    assert trainers[1].window().loss == pytest.approx(trainers[0].window().loss, rel=0.1)


# --- every term ---

JUMP = {"variant": "jumprelu", "bandwidth": 0.2}
ERROR, NESTED = Term("squared_error"), Term("nested_error", settings={"prefixes": [40, 131]})
CASES: dict[str, tuple[dict[str, Any], list[Term]]] = {
    "squared_error": ({}, [ERROR]),
    "nested_error": ({"variant": "batchtopk"}, [NESTED]),
    "gate_error": ({"variant": "gated"}, [ERROR, Term("gate_error", 0.7)]),
    "gate_l1": ({"variant": "gated"}, [ERROR, Term("gate_l1", 0.3)]),
    "l1": ({}, [Term("l1", 0.3), ERROR]),
    "tanh": (JUMP, [ERROR, Term("tanh", 0.3, {"scale": 4.0})]),
    "lp": ({}, [ERROR, Term("lp", 0.3)]),
    "l0": (JUMP, [ERROR, Term("l0", 0.3)]),
    "l0_target": (JUMP, [ERROR, Term("l0_target", 0.3, {"target": 2.0})]),
    "contrast": ({"variant": "temporal"}, [NESTED, Term("contrast", 0.3, {"latents": 40, "temperature": 0.1})]),
    "auxk": ({"variant": "batchtopk"}, [ERROR, Term("auxk", 0.3)]),
    "pre_activation": (JUMP, [ERROR, Term("pre_activation", 0.3)]),
}
OF_OTHER_CODES = {"gaussian_kl", "capacity", "total_correlation", "rate_kl"}
"""Terms of the same views which refuse every code that the fused route knows."""


def test_every_term_that_the_fused_route_takes_has_a_case() -> None:
    taken = {name for name, entry in TERMS.items() if entry.view in (Entries, DeadRows, Reconstructions)}
    assert taken == CASES.keys() | OF_OTHER_CODES


@pytest.mark.parametrize("name", CASES)
def test_a_term_has_the_same_loss_and_gradient_on_both_routes(name: str) -> None:
    settings, terms = CASES[name]
    fused, autograd, dense = fused_and_autograd(settings, planted(STEPS), terms=terms)
    assert not dense
    assert_same_steps(fused, autograd)


@pytest.fixture
def frozen_errors(monkeypatch: pytest.MonkeyPatch) -> Term:
    """A term that decodes twice, and is no plain mean of what it decodes."""
    monkeypatch.setattr("sae.modules.losses.TERMS", {**TERMS})

    def roots(entries: Entries) -> Tensor:
        gate = entries.listed.with_values(torch.relu(entries.listed.values))
        return (1 + entries.frozen_error(gate)).sqrt() + 0.1 * entries.frozen_error(entries.codes)

    register(roots)
    return Term("roots", 0.5)


@pytest.mark.parametrize("variant", ["topk", "gated"])
def test_frozen_errors_may_be_read_twice_and_weighted_by_the_token(variant: str, frozen_errors: Term) -> None:
    assert_same_steps(*fused_and_autograd({"variant": variant}, planted(STEPS), terms=[ERROR, frozen_errors])[:2])


def test_two_terms_of_dead_rows_are_both_trained() -> None:
    terms = [ERROR, Term("auxk", 0.3), Term("pre_activation", 0.2)]
    assert_same_steps(*fused_and_autograd({}, planted(STEPS), terms=terms)[:2])


@pytest.mark.parametrize(
    "terms",
    [
        [Term("squared_error", 2.0)],
        [Term("squared_error", warmup=0.5)],
        [Term("squared_error"), NESTED],
        [Term("l1")],
        [ERROR, Term("gaussian", settings={"variance": 0.5})],
    ],
    ids=["weighted", "warmed up", "two errors", "no error", "a likelihood"],
)
def test_what_the_sweep_cannot_differentiate_goes_through_autograd(terms: list[Term]) -> None:
    assert trainer_of({"variant": "batchtopk"}, steps=1, terms=terms).route.name == "autograd"
