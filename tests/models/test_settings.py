"""No setting is accepted that does nothing: every field of every variant changes its plan, or is refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae.config import SPARSE, ConfigError, OptimConfig, SAEConfig, VisionConfig, refuse_ignored
from sae.config.image_variants import IMAGE_SETTINGS
from sae.config.variants import SETTINGS
from sae.models import language, vision
from sae.models.language import VARIANTS, find_variant
from sae.models.settings import ignored, ignored_by_images
from sae.models.vision import OWN
from sae.training.trainer import Trainer

SHAPE = (1, 16, 16)
OTHER: dict[str, Any] = {
    "width": 24, "k": 3, "l0_target": 5.0, "sparsity": 0.7, "sparsity_warmup": 0.9, "penalty": "tanh",
    "recipe": "anthropic", "bandwidth": 3.0, "groups": 2, "contrast": 9.0, "k_start": 16, "k_anneal": 0.9,
    "normalise": "centre", "revival": "pre_activation", "pre_activation_weight": 0.5, "auxk_weight": 0.7, "auxk": 1,
    "dead_after": 64,
    "hidden": (8, 4), "channels": (8,), "upsampling": False, "output": "linear", "likelihood": "gaussian",
    "variance": 0.1, "beta": 7.0, "beta_per": "dimension", "kl_warmup": 0.9, "free_bits": 0.5, "capacity": 3.0,
    "gamma": 5.0, "rate": 0.3, "rate_weight": 90.0, "rate_momentum": 0.5, "corruption": "masking",
    "corruption_level": 0.6, "corrupted_only": True, "code_dim": 3, "commitment": 0.9, "momentum": 0.5,
    "resets": False, "stem": "mlp", "head": "mlp",
}  # fmt: skip
"""Field -> a value other than its default."""


def fingerprint(recipe: Any, settings: SAEConfig) -> list[Any]:
    """What a run does, as far as settings decide: the model, its loss, its weights and dead latents after 4 steps."""
    trainer = Trainer(
        recipe, OptimConfig(lr=1e-2), steps=8, dead_after=settings.dead_after or 33, auxk=settings.auxk or 8,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    dim = recipe.model.dim
    rows = torch.rand(4 * 32, dim, generator=torch.Generator().manual_seed(1)) * (1 + torch.arange(dim) % 3)
    rows = rows / rows.max()
    trainer.initialise([rows[:32]], [rows[:32]])
    trainer.model.dictionary.tokens_since_fired[::2] = 10**6  # dead: there is something to revive
    for x in rows.split(32):
        trainer.step(x, x, torch.ones(16, dtype=torch.bool))
    weights = {name: p.detach().double().sum().item() for name, p in trainer.model.named_parameters()}
    terms = [tuple(term) for term in recipe.terms]
    return [weights, terms, trainer.model.code.describe(), recipe.revival, recipe.corruption, settings.dead_after]


def check_every_field(start: Any, changes: Callable[[Any], list[Any]], refusal: Callable[[Any], None]) -> None:
    """Change each field alone: the run becomes another one, or the change is refused by the field's name."""
    before = changes(start)
    for field in dataclasses.fields(start):
        if field.name in ("variant", "base") or getattr(start, field.name) == OTHER[field.name]:
            continue
        changed = dataclasses.replace(start, **{field.name: OTHER[field.name]})
        refused = None
        try:
            refusal(changed)
            after = changes(changed)
        except ConfigError as error:
            refused, after = str(error), before
        named = refused is not None and re.search(rf"--{field.name.replace('_', '-')}\b", refused)
        assert after != before or named, f"--{field.name} {OTHER[field.name]} does nothing: {refused}"


AUTO = [field.name for field in dataclasses.fields(VisionConfig) if field.default == "auto"]
TEXT: list[dict[str, Any]] = [
    *({"variant": name} for name in VARIANTS),
    {"variant": "relu", "penalty": "tanh"},
    {"variant": "relu", "sparsity": 0.1},
    {"variant": "relu", "revival": "none"},
    {"variant": "jumprelu", "recipe": "anthropic"},
    {"variant": "jumprelu", "recipe": "target"},
    {"variant": "topk", "k_start": 6},
    {"variant": "topk", "revival": "resample"},
    {"variant": "topk", "auxk_weight": 0.0},
    {"variant": "gated", "revival": "pre_activation"},
    {"variant": "transcoder", "base": "jumprelu"},
    {"variant": "crosscoder", "base": "matryoshka"},
]


@pytest.mark.parametrize("settings", TEXT, ids=lambda s: " ".join(map(str, s.values())))
def test_every_field_of_a_variant_counts_or_is_refused(settings: dict[str, Any]) -> None:
    def recipe(config: SAEConfig) -> list[Any]:
        sites = [8, 8] if find_variant(config).several_sites else [16]
        return fingerprint(language.recipe_of(config, sites), config)

    def refuse(config: SAEConfig) -> None:
        refuse_ignored(config, ignored(config, find_variant(config)))

    start = SAEConfig(**{"width": 32, "k": 4, **settings})
    refuse(start)
    check_every_field(start, recipe, refuse)


IMAGES: list[dict[str, Any]] = [
    *({"variant": name} for name in (*OWN, *SPARSE)),
    {"variant": "topk", "head": "mlp", "stem": "mlp"},
    {"variant": "ae", "stem": "convolutional", "head": "convolutional"},
    {"variant": "ae", "stem": "convolutional"},
    {"variant": "vae", "likelihood": "gaussian", "output": "linear"},
    {"variant": "denoising", "corruption": "masking", "corrupted_only": True},
    {"variant": "vqvae", "momentum": 0.0},
]


@pytest.mark.parametrize("settings", IMAGES, ids=lambda s: " ".join(map(str, s.values())))
def test_every_field_of_an_image_variant_counts_or_is_refused(settings: dict[str, Any]) -> None:
    def recipe(config: VisionConfig) -> list[Any]:
        return fingerprint(vision.recipe_of(config, SHAPE, 128), config)

    def refuse(config: VisionConfig) -> None:
        refuse_ignored(config, ignored_by_images(config, SHAPE))

    start = VisionConfig(width=32, **settings)
    refuse(start)
    whole = vision.completed(start, SHAPE)
    # what auto stands for makes the same run by its name
    same = {name: value for name, value in OTHER.items() if name in AUTO and getattr(whole, name) == value}
    check_every_field(dataclasses.replace(start, **same), recipe, refuse)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_reads_its_own_settings_and_no_others(name: str) -> None:
    settings = SETTINGS[name](variant=name, width=32, k=4)
    row = VARIANTS[name]
    row.code(settings, 16), row.terms(settings), row.penalty(settings)


@pytest.mark.parametrize("name", OWN)
def test_an_image_variant_reads_its_own_settings_and_no_others(name: str) -> None:
    settings = IMAGE_SETTINGS[name](variant=name, width=32)
    OWN[name].code(settings), OWN[name].terms(settings, 64, 128)


def test_every_variant_has_settings() -> None:
    assert set(SETTINGS) == set(VARIANTS)
    assert set(IMAGE_SETTINGS) == {*OWN, *SPARSE}


def test_all_that_does_nothing_is_named_at_once_with_its_owners() -> None:
    config = SAEConfig(variant="topk", groups=7, contrast=9.0, recipe="anthropic", bandwidth=3.0, penalty="tanh")
    with pytest.raises(ConfigError) as refused:
        refuse_ignored(config, ignored(config, find_variant(config)))
    for flag, owner in (
        ("--groups 7", "matryoshka"), ("--contrast 9.0", "temporal"), ("--recipe anthropic", "jumprelu"),
        ("--bandwidth 3.0", "jumprelu"), ("--penalty tanh", "relu"),
    ):  # fmt: skip
        assert f"{flag}: applies to --variant {owner}, not to topk" in str(refused.value)


@pytest.mark.parametrize("optimizer", ["adam", "signsgd", "muon"])
def test_every_field_of_an_optimizer_counts_or_is_refused(optimizer: Any) -> None:
    other = {
        "lr": 0.5, "warmup": 0.9, "decay": 0.9, "beta1": 0.1, "beta2": 0.1, "eps": 1.0, "clip": 1e-3,
        "compute": "bfloat16", "moments": "bfloat16",
    }  # fmt: skip

    def weights(config: OptimConfig) -> list[float]:
        recipe = language.recipe_of(SAEConfig(variant="relu", width=32, k=4), [16])
        trainer = Trainer(recipe, config, steps=6, dead_after=99, auxk=8, device=torch.device("cpu"), seed=0)
        rows = torch.rand(6 * 32, 16, generator=torch.Generator().manual_seed(1))
        trainer.initialise([rows[:32]], [rows[:32]])
        for x in rows.split(32):
            trainer.step(x, x)
        return [p.detach().double().sum().item() for p in trainer.finished().parameters()]

    start = OptimConfig(optimizer=optimizer)
    for name, value in other.items():
        changed = dataclasses.replace(start, **{name: value})
        if name in changed.ignored():
            with pytest.raises(ConfigError, match=f"--{name} .*: --optimizer {optimizer}"):
                refuse_ignored(changed, changed.ignored())
        else:
            assert weights(changed) != weights(start), name
