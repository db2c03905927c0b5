"""The table of image variants: what is built, what the chapter says of its shapes, what is refused, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sae
from sae.base.files import publish_json
from sae.book.comparison.plan import pixel_members, planted_members
from sae.config import ConfigError, OptimConfig, VisionConfig
from sae.models.heads import HEADS, ConvolutionalHead, doubled
from sae.models.saved import save_weights
from sae.models.stems import STEMS, ConvolutionalStem
from sae.models.vision import NAMES, OWN, completed, recipe_of
from sae.modules.codes import BatchTopK, Gaussian, TopK
from sae.modules.losses import find_term
from sae.runs.images import decode_dense, dense_codes
from sae.training.trainer import Trainer

SHAPE = (1, 8, 8)
SMALL: dict[str, Any] = {"width": 12, "k": 3, "hidden": (16,), "channels": (4,), "code_dim": 6, "batch": 32}


def settings(variant: str, **more: Any) -> VisionConfig:
    given = {name: value for name, value in SMALL.items() if name != "batch"}
    if variant not in ("vqvae", "vqvae2"):
        given.pop("channels")
    return VisionConfig(variant=variant, **{**given, **more})


def pictures(n: int = 32, seed: int = 0) -> Tensor:
    """Images of few causes: sums of three blobs."""
    draw = torch.Generator().manual_seed(seed)
    blobs = torch.rand(6, 64, generator=torch.Generator().manual_seed(1)) ** 4
    return (torch.rand(n, 6, generator=draw) @ blobs / 3).clamp(0, 1)


def trained(config: VisionConfig, steps: int = 6, seed: int = 0) -> Trainer:
    trainer = Trainer(
        recipe_of(config, SHAPE, 200),
        OptimConfig(),
        steps=steps,
        dead_after=10**6,
        auxk=4,
        device=torch.device("cpu"),
        seed=seed,
    )
    first = pictures()
    trainer.initialise([first], [first])
    for step in range(steps):
        x = pictures(seed=step)
        trainer.step(x, x)
    return trainer


# --- every row ---


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_trains_and_its_loss_is_made_of_known_terms(name: str) -> None:
    trainer = trained(settings(name))
    window = trainer.window()
    assert all(find_term(term.name) for term in trainer.terms)
    assert set(window.parts) == {term.name for term in trainer.terms}
    assert window.fvu > 0
    assert trainer.finished().show(torch.zeros(trainer.model.positions, trainer.model.dictionary.W.shape[1])).shape == (
        1,
        64,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_is_what_loads(name: str, tmp_path: Path) -> None:
    trainer = trained(settings(name))
    model = trainer.finished()
    publish_json(tmp_path / "config.json", {"autoencoder": save_weights(tmp_path, model, trainer.probe)})
    loaded = sae.load(tmp_path)
    x = pictures(seed=50)
    assert loaded.encode(x).to_dense().equal(model.encode(x).to_dense())
    assert loaded(x).reconstruction.equal(model(x).reconstruction)
    assert torch.allclose(decode_dense(loaded, dense_codes(loaded, x)), loaded(x).reconstruction, atol=1e-5)


@pytest.mark.parametrize("name", ["vae", "denoising", "vqvae", "topk", "jumprelu", "kl_sparse"])
def test_a_restored_trainer_goes_on_bit_for_bit(name: str) -> None:
    config = settings(name, **({"rate_momentum": 0.9} if name == "kl_sparse" else {}))
    whole, first = trained(config, steps=8), trained(config, steps=8)
    half = trained_until(config, 4, 8)
    other = Trainer(
        recipe_of(config, SHAPE, 200), OptimConfig(), steps=8, dead_after=10**6, auxk=4, device=torch.device("cpu"),
        seed=0,
    )  # fmt: skip
    other.restore(*half.state())
    for step in range(4, 8):
        x = pictures(seed=step)
        other.step(x, x)
    for (key, a), b in zip(whole.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert a.equal(b), key
        assert first.model.state_dict()[key].equal(a), f"{key}: the same seed, the same weights"


def trained_until(config: VisionConfig, done: int, steps: int) -> Trainer:
    trainer = Trainer(
        recipe_of(config, SHAPE, 200), OptimConfig(), steps=steps, dead_after=10**6, auxk=4,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    first = pictures()
    trainer.initialise([first], [first])
    for step in range(done):
        x = pictures(seed=step)
        trainer.step(x, x)
    return trainer


def test_seeds_differ() -> None:
    a, b = (trained(settings("vae"), seed=seed).model.W_enc for seed in (0, 1))
    assert not a.equal(b)


# --- the chapter's shapes ---


def test_the_chapter_s_autoencoder_has_435_536_parameters() -> None:
    model = recipe_of(VisionConfig(variant="ae", width=64, hidden=(256,)), (1, 28, 28), 4000).model
    assert sum(p.numel() for p in model.parameters()) == 435_536


def test_the_convolutional_autoencoder_has_the_chapter_s_stages() -> None:
    config = VisionConfig(variant="vae", stem="convolutional", head="convolutional", upsampling=False)
    model = recipe_of(config, (3, 64, 64), 100).model
    assert isinstance(model.stem, ConvolutionalStem)
    assert isinstance(model.head, ConvolutionalHead)
    maps = [tuple(stage.shape[1:]) for stage in model.stem.stages(torch.zeros(2, 3 * 64 * 64))]
    assert maps == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
    back = [tuple(stage.shape[1:]) for stage in model.head.stages(torch.zeros(2, model.head.dim))]
    assert back == [(64, 16, 16), (32, 32, 32), (3, 64, 64)]
    assert {layer.kernel_size + layer.stride + layer.padding for layer in model.stem.layers} == {(4, 4, 2, 2, 1, 1)}


def test_doubling_and_a_convolution_are_one_transposed_convolution() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3, padding=1).double(), torch.randn(2, 3, 4, 6).double().requires_grad_()
    plainly = layer(nn.functional.interpolate(x, scale_factor=2))
    at_once = doubled(layer, x)
    torch.testing.assert_close(at_once, plainly)
    read = [*layer.parameters(), x]
    expected, found = (torch.autograd.grad(y.pow(3).sum(), read) for y in (plainly, at_once))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 8, 8)])
@pytest.mark.parametrize("upsampling", [False, True])
def test_stems_and_heads_fit_each_other(shape: tuple[int, int, int], upsampling: bool) -> None:
    for name in ("vqvae", "vqvae2"):
        model = recipe_of(VisionConfig(variant=name, upsampling=upsampling), shape, 10).model
        x = torch.rand(2, model.dim)
        codes, reconstruction = model(x)
        assert reconstruction.shape == x.shape
        assert codes.tokens == 2 * model.positions
        assert model.head is not None
        assert model.positions == model.head.positions


def test_rows_of_a_sample_stay_together() -> None:
    for name in ("vqvae", "vqvae2"):
        model = trained(settings(name)).model
        x = pictures(4)
        together = model.embed(x).view(4, model.positions, -1)
        each = torch.cat([model.embed(row.unsqueeze(0)) for row in x])
        assert torch.allclose(each, together.flatten(0, 1), atol=1e-5)
        decoded = model.dictionary.decode(model.encode(x))
        alone = torch.cat([model.show(part) for part in decoded.split(model.positions)])
        assert torch.allclose(alone, model.show(decoded), atol=1e-5)


def test_descriptions_build_stems_and_heads_again() -> None:
    for kind, parts in ((STEMS, "stem"), (HEADS, "head")):
        built = {
            getattr(recipe_of(settings(name, **more), SHAPE, 10).model, parts)
            for name, more in (("ae", {}), ("vqvae", {}), ("vqvae2", {}))
        }
        assert {part.name for part in built} == set(kind)
        for part in built:
            described = part.describe()
            again = kind[described["name"]](**{k: v for k, v in described.items() if k != "name"})
            assert again.describe() == described


# --- what the table says ---


def test_sparse_rows_are_the_language_table_s_own() -> None:
    for name, code in (("topk", TopK), ("batchtopk", BatchTopK)):
        recipe = recipe_of(settings(name), SHAPE, 10)
        assert isinstance(recipe.model.code, code)
        assert [term.name for term in recipe.terms] == ["squared_error", "auxk"]
        assert trained(settings(name)).route.name == "fused"


def test_a_gaussian_code_reads_means_and_variances() -> None:
    model = recipe_of(settings("vae"), SHAPE, 10).model
    assert isinstance(model.code, Gaussian)
    assert model.W_enc.shape == (24, 16)
    assert model.dictionary.W.shape == (12, 16)


def test_auto_is_written_out() -> None:
    whole = completed(VisionConfig(variant="denoising"), (1, 28, 28))
    assert (whole.stem, whole.head, whole.output, whole.corruption, whole.corruption_level) == (
        "mlp", "mlp", "sigmoid", "gaussian", 0.3,
    )  # fmt: skip
    assert completed(VisionConfig(variant="vqvae"), (1, 28, 28)).channels == (32, 64)
    assert completed(VisionConfig(variant="vqvae2"), (1, 28, 28)).channels == (32,)
    assert completed(VisionConfig(variant="vqvae"), (1, 8, 8)).channels == (32,)
    assert completed(VisionConfig(variant="vqvae"), (3, 64, 64)).channels == (32, 64, 128)
    assert completed(VisionConfig(variant="topk"), (1, 28, 28)).normalise == "scale"
    assert set(OWN) <= set(NAMES)


@pytest.mark.parametrize(
    ("shape", "betas", "gamma"),
    [
        ((1, 28, 28), (1.0, 4.0, 6.0), 100.0),
        ((3, 64, 64), (1.0, 4.0, 6.0), 100.0),
        ((1, 14, 14), (1.0, 1.0, 2.25), 25.0),
        ((1, 8, 8), (1.0, 16 / 49, 1 + 20 / 49), 400 / 49),
    ],
)
def test_small_images_are_held_to_their_prior_in_proportion(
    shape: tuple[int, int, int], betas: tuple[float, ...], gamma: float
) -> None:
    for variant, beta in zip(("vae", "beta_vae", "beta_tcvae"), betas, strict=True):
        assert completed(VisionConfig(variant=variant), shape).beta == pytest.approx(beta), variant
        assert completed(VisionConfig(variant=variant, beta=3.0), shape).beta == 3.0, "as given"
    terms = recipe_of(VisionConfig(variant="capacity_vae"), shape, 10).terms
    assert {t.name: t.weight for t in terms}["capacity"] == pytest.approx(gamma)
    assert completed(VisionConfig(variant="capacity_vae", gamma=30.0), shape).gamma == 30.0


def test_the_comparison_s_models_do_not_hang_on_what_is_usual() -> None:
    """Its recorded figures were taken at these weights."""
    shapes = ((pixel_members((1, 32, 32), quick=False), (1, 32, 32)), (planted_members(quick=False), (1, 12, 12)))
    weights = {
        member.name: (whole.beta, whole.gamma)
        for members, shape in shapes
        for member in members
        if member.family in ("beta_vae", "beta_tcvae", "capacity_vae")
        for whole in [completed(member.vision, shape)]
    }
    assert {name: beta for name, (beta, _) in weights.items() if name.startswith("beta")} == {
        "beta_vae-w16-beta0.5": 0.5,
        "beta_vae-w16-beta2": 2.0,
        "beta_vae-w16-beta4": 4.0,
        "beta_tcvae-w16": 6.0,
        "beta_vae-w96-beta4": 4.0,
    }
    assert weights["capacity_vae-w16"][1] == 100.0


def test_k_means_nothing_where_nothing_keeps_k() -> None:
    assert recipe_of(VisionConfig(variant="vae", width=2), SHAPE, 10).model.width == 2
    with pytest.raises(ConfigError, match="--k 8: expected at most the number of latents, --width 2"):
        VisionConfig(variant="topk", width=2)


def test_normalised_beta_counts_pixels_over_latents() -> None:
    recipe = recipe_of(settings("beta_vae", beta=0.5, beta_per="dimension"), SHAPE, 10)
    assert {t.name: t.weight for t in recipe.terms}["gaussian_kl"] == pytest.approx(0.5 * 64 / 12)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"variant": "vea"}, "--variant 'vea' is unknown; did you mean 'vae'"),
        ({"variant": "transcoder"}, "--variant 'transcoder' is unknown"),
        ({"variant": "vae", "output": "linear"}, "--likelihood bernoulli: needs --output sigmoid, not linear"),
        ({"variant": "linear", "output": "sigmoid"}, "--output sigmoid: needs a head"),
        ({"variant": "vqvae", "stem": "mlp"}, "--stem mlp: a codebook quantises the places of a feature map"),
        (
            {"variant": "vqvae", "head": "mlp", "channels": (4,)},
            "--head mlp: reads another number of places than --stem convolutional",
        ),
        (
            {"variant": "matryoshka", "head": "mlp"},
            "--head mlp: --variant matryoshka scores the dictionary's own output",
        ),
        (
            {"variant": "matching_pursuit", "stem": "mlp"},
            "--stem mlp: the encoder of matching_pursuit is",
        ),
        ({"variant": "ae", "normalise": "scale"}, "--normalise scale: cannot be folded through a stem or head"),
        (
            {"variant": "denoising", "corrupted_only": True},
            "--corrupted-only: --corruption gaussian does not single",
        ),
        ({"variant": "vqvae", "channels": (4, 4, 4, 4)}, r"--channels \[4, 4, 4, 4\]: a side of 8 cannot be halved 4"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe_of(VisionConfig(**given), SHAPE, 10)


# --- corruption and warm-up in training ---


def test_training_inputs_are_corrupted_and_targets_clean() -> None:
    trainer = trained(settings("denoising", corruption="masking", corruption_level=0.5), steps=2)
    seen: list[tuple[Tensor, Tensor]] = []
    take = trainer.route.take

    def watch(x: Tensor, target: Tensor, now: Any) -> Any:
        seen.append((x.clone(), target.clone()))
        return take(x, target, now)

    trainer.route.take = watch  # type: ignore[method-assign]
    x = pictures(200)
    trainer.step(x, x)
    given, target = seen[0]
    assert target.equal(x)
    assert (given == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert given[given != 0].equal(x[given != 0])


def test_the_divergence_s_weight_rises_over_its_warm_up() -> None:
    config = settings("vae", kl_warmup=0.5)
    trainer = trained_until(config, 0, 8)
    weights = []
    for step in range(8):
        weights.append({t.name: t.weight for t in trainer._weighted()}["gaussian_kl"])
        x = pictures(seed=step)
        trainer.step(x, x)
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
