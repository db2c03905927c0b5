"""The table of variants: what each row builds, folds into its saved form, saves and loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sae
from sae.base.files import CorruptError, publish_json, read_json
from sae.config import ConfigError, SAEConfig
from sae.models.autoencoder import Autoencoder
from sae.models.language import VARIANTS, build, find_variant, recipe_of, revival_of, terms_of
from sae.models.recipe import Recipe
from sae.models.saved import save_weights, verify
from sae.modules.losses import find_term
from sae.modules.normalise import Affine, fit, identity, layer_norm

WIDTH, K, DIM, DIM_OUT, SITES = 40, 4, 12, 9, [5, 7]
BASES = [name for name, row in VARIANTS.items() if row.base is None]
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"variant": name} for name in VARIANTS},
    **{
        f"{name}, {base}": {"variant": name, "base": base}
        for name, row in VARIANTS.items()
        for base in BASES
        if row.base not in (None, base) and not build(SAEConfig(variant=base, width=8, k=2), 4).code.tied
    },
}
NORMALISE = ["scale", "centre", "layer_norm", "whiten"]


def allowed(name: str, normalise: str) -> bool:
    """As the plan of a run has it."""
    variant = find_variant(SAEConfig(**SETTINGS[name]))
    tied = build(SAEConfig(**{"width": 8, "k": 2, **SETTINGS[name]}), 4).code.tied
    if normalise == "layer_norm":
        return not (variant.transcodes or variant.several_sites)
    return not (tied and normalise == "whiten")


FOLDED = [(name, normalise) for name in SETTINGS for normalise in NORMALISE if allowed(name, normalise)]


def rows(count: int, dim: int, seed: int) -> Tensor:
    """Activations far from what an autoencoder is trained on: a large mean, correlated, of unequal variance."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, dim, generator=draw) @ (torch.randn(dim, dim, generator=draw) + 2 * torch.eye(dim))
    return 3 * mixed + 20 * torch.randn(dim, generator=draw)


class Trained:
    """An autoencoder in the state that training leaves: random weights, unit atoms, with its normalisation."""

    def __init__(self, name: str, normalise: str = "scale") -> None:
        config = SAEConfig(**{"width": WIDTH, "k": K, "normalise": normalise, **SETTINGS[name]})
        self.variant = find_variant(config)
        site_widths = SITES if self.variant.several_sites else [DIM]
        target_widths = [DIM_OUT] if self.variant.transcodes else site_widths
        self.model = build(config, sum(site_widths), sum(target_widths))
        self.x = rows(200, sum(site_widths), seed=1)
        self.inputs = fit(normalise, self.x, site_widths)
        self.targets = self.inputs
        if self.variant.transcodes:
            self.targets = fit(normalise, rows(200, DIM_OUT, seed=2), target_widths)
        draw = torch.Generator().manual_seed(0)
        self.model.initialise(draw)
        with torch.no_grad():
            self.model.dictionary.b.copy_(0.3 * torch.randn(self.model.dim_out, generator=draw))
            if not self.model.code.tied:
                self.model.W_enc.mul_(0.5 + torch.rand(WIDTH, 1, generator=draw))
                self.model.b_enc.copy_(torch.randn(WIDTH, generator=draw) - 1)
            if self.model.W_skip is not None:
                self.model.W_skip.copy_(torch.randn(self.model.W_skip.shape, generator=draw))
            for parameter in self.model.code.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=draw) * 0.3)

    @torch.no_grad()
    def settled(self) -> Autoencoder:
        """In the form that looks at one token at a time."""
        model, x = self.model, self.inputs.apply(self.x)
        x = layer_norm(x)[0] if model.per_token_norm else x
        return model.like(model.code.settled(x, model.W_enc, model.b_enc, model.b_pre))

    @torch.no_grad()
    def folded(self) -> Autoencoder:
        return self.settled().folded(self.inputs, self.targets)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# --- the table ---


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_row_builds_an_autoencoder_and_names_known_terms(name: str) -> None:
    config = SAEConfig(**{"width": WIDTH, "k": K, **SETTINGS[name]})
    variant, terms = find_variant(config), terms_of(config, find_variant(config))
    assert all(find_term(term.name) for term in terms)
    penalty = variant.penalty(config)
    assert penalty is None or penalty in [term.name for term in terms]
    assert revival_of(config, variant) in ("auxk", "resample", "pre_activation", "none")
    model = Trained(name).model
    codes, reconstruction = model(rows(5, model.dim, seed=0))
    assert codes.to_dense().shape == (5, WIDTH)
    assert reconstruction.shape == (5, model.dim_out)


def test_what_the_rows_say_of_place_is_what_is_built() -> None:
    assert Trained("transcoder").model.transcodes
    assert Trained("transcoder").model.b_pre is None
    assert Trained("transcoder").model.W_skip is None
    skip = build(SAEConfig(variant="skip_transcoder", width=WIDTH, k=K), DIM, DIM_OUT)
    assert skip.W_skip is not None
    assert not skip.W_skip.any(), "zero at the start"
    assert Trained("crosscoder").model.b_pre is not None
    pursuit = Trained("matching_pursuit").model
    assert pursuit.W_enc is pursuit.dictionary.W


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"variant": "jumprely"}, "--variant 'jumprely' is unknown; did you mean 'jumprelu'"),
        (
            {"variant": "topk", "base": "relu"},
            "--base relu: expected with --variant transcoder, skip_",
        ),
        ({"variant": "transcoder", "base": "reluu"}, "--base 'reluu' is unknown; did you mean 'relu'"),
        ({"variant": "transcoder", "base": "crosscoder"}, "--base 'crosscoder' is unknown"),
        ({"variant": "transcoder", "base": "matching_pursuit"}, "its encoder is its dictionary, which a transcoder"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_variant(SAEConfig(**settings))


def test_revival_is_what_was_asked_for_or_what_the_variant_likes() -> None:
    def recipe(**settings: Any) -> Recipe:
        return recipe_of(SAEConfig(width=WIDTH, k=K, **settings), [DIM])

    assert recipe(variant="topk").revival == "auxk"
    assert recipe(variant="topk", auxk_weight=0.0).revival == "none"
    assert recipe(variant="matching_pursuit").revival == "resample"
    for revival in ("auxk", "pre_activation"):
        last = recipe(variant="relu", revival=revival, auxk_weight=0.5, pre_activation_weight=0.25).terms[-1]
        assert (last.name, last.weight) == (revival, 0.5 if revival == "auxk" else 0.25)
    assert [term.name for term in recipe(revival="none").terms] == ["squared_error"]


# --- normalisation ---


@pytest.mark.parametrize("normalise", ["scale", "centre", "whiten"])
def test_normalised_inputs_have_mean_square_d_at_every_site(normalise: str) -> None:
    x = rows(500, 12, seed=3)
    affine = fit(normalise, x, [5, 7])
    y = affine.apply(x)
    for part in y.split([5, 7], dim=1):
        assert part.square().sum(1).mean().item() == pytest.approx(part.shape[1], rel=0.01)
    assert relative(affine.undo(y), x) < 1e-4
    if normalise != "scale":
        assert y.mean(0).abs().max() < 1e-3
    if normalise == "whiten":
        assert torch.allclose(y.T @ y / 500, torch.eye(12), atol=0.05)


def test_layer_norm_leaves_mean_zero_and_deviation_one() -> None:
    x = rows(50, 12, seed=3)
    y, statistics = layer_norm(x)
    assert y.mean(1).abs().max() < 1e-5
    assert torch.allclose(y.std(1), torch.ones(50), atol=1e-4)
    assert relative(y * statistics.deviation + statistics.mean, x) < 1e-5
    assert torch.isfinite(layer_norm(torch.full((2, 4), 7.0))[0]).all(), "a constant token"


# --- folding ---


@pytest.mark.parametrize(("name", "normalise"), FOLDED)
def test_folding_changes_no_output(name: str, normalise: str) -> None:
    trained = Trained(name, normalise)
    inner, folded, x = trained.settled(), trained.folded(), trained.x
    with torch.no_grad():
        expected = trained.targets.undo(inner(trained.inputs.apply(x)).reconstruction)
        codes, reconstruction = folded(x)
        again = folded.decode(folded.encode(x), x)
        before = inner.encode(trained.inputs.apply(x)).to_dense()
    assert (before != 0).float().mean() > 0.02
    # a code at its threshold may go either way by rounding: all but one token in a hundred are to agree closely
    errors = (reconstruction - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.quantile(0.99) < 1e-5
    assert again.equal(reconstruction)
    assert ((codes.to_dense() != 0) == (before != 0)).float().mean() > 0.999


@pytest.mark.parametrize(("name", "normalise"), FOLDED)
def test_folded_atoms_have_unit_norm_where_there_is_such_a_form(name: str, normalise: str) -> None:
    trained = Trained(name, normalise)
    folded = trained.folded()
    norms = folded.dictionary.W.norm(dim=1)
    stretched = trained.targets.atoms(trained.model.dictionary.W).norm(dim=1)
    even = stretched.max() / stretched.min() < 1 + 1e-5
    if even or trained.settled().code.rescaled(stretched) is not None:
        assert torch.allclose(norms, torch.ones(WIDTH), atol=1e-5)
    else:
        assert folded.code.name == "topk"
        assert torch.allclose(norms, stretched, rtol=1e-5)


def test_folding_leaves_the_trained_autoencoder_as_it_was() -> None:
    for name in VARIANTS:
        trained = Trained(name)
        before = {key: tensor.clone() for key, tensor in trained.model.state_dict().items()}
        trained.folded()
        for key, tensor in trained.model.state_dict().items():
            assert tensor.equal(before[key]), (name, key)


def test_folding_the_identity_is_none() -> None:
    model = Trained("relu").model
    folded, x = model.folded(identity(DIM), identity(DIM)), rows(20, DIM, seed=0)
    with torch.no_grad():
        assert relative(folded(x).reconstruction, model(x).reconstruction) < 1e-6


@pytest.mark.parametrize(("name", "normalise"), [("skip_transcoder", "scale"), ("topk", "layer_norm")])
def test_a_reconstruction_that_needs_the_inputs_says_so(name: str, normalise: str) -> None:
    trained = Trained(name, normalise)
    folded = trained.folded()
    codes = folded.encode(trained.x)
    with pytest.raises(ValueError, match=r"x: with a skip .* or layer norm, decode\(codes, x\) needs the inputs"):
        folded.decode(codes)


@pytest.mark.parametrize("name", [n for n in VARIANTS if not VARIANTS[n].skip])
def test_any_other_reconstruction_needs_the_codes_alone(name: str) -> None:
    folded = Trained(name).folded()
    codes, reconstruction = folded(Trained(name).x)
    assert folded.decode(codes).equal(reconstruction)


# --- saving ---


def save(folder: Path, model: Autoencoder, x: Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    publish_json(folder / "config.json", {"autoencoder": save_weights(folder, model, x)})
    return folder


@pytest.mark.parametrize(("name", "normalise"), FOLDED)
def test_what_was_saved_is_what_loads(name: str, normalise: str, tmp_path: Path) -> None:
    trained = Trained(name, normalise)
    folded = trained.folded()
    with torch.no_grad():
        codes, reconstruction = folded(trained.x)
    loaded = sae.load(save(tmp_path, folded, trained.x))
    with torch.no_grad():
        again, theirs = loaded(trained.x)
    assert again.to_dense().equal(codes.to_dense())
    assert theirs.equal(reconstruction)
    assert loaded.code.describe() == folded.code.describe()
    for field in ("transcodes", "per_token_norm", "dim", "dim_out", "width"):
        assert getattr(loaded, field) == getattr(folded, field)
    assert max(verify(tmp_path)) < 1e-6


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of every variant."""
    folders = {}
    for name in VARIANTS:
        trained = Trained(name)
        folders[name] = save(tmp_path_factory.mktemp("saved") / name, trained.folded(), trained.x)
    return folders


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


CODE_TENSORS = [
    (name, f"code.{key}") for name in VARIANTS for key in sorted(dict(Trained(name).folded().code.state_dict()))
] + [("skip_transcoder", "W_skip")]


@pytest.mark.parametrize("change", ["missing", "cut", "scaled", "zero", "nan", "flipped", "float16"])
@pytest.mark.parametrize(("name", "tensor"), CODE_TENSORS)
def test_a_changed_tensor_of_a_code_is_noticed(
    name: str, tensor: str, change: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(saved[name], tmp_path)
    tensors = load_file(run / "sae.safetensors")
    value = tensors.pop(tensor)
    if change == "flipped" and value.unique().numel() == 1:
        change = "scaled"  # one threshold for all latents reads the same from behind
    changed = {
        "cut": value[:-1].clone(),
        "scaled": value * 1.5,
        "zero": torch.zeros_like(value),
        "nan": torch.full_like(value, torch.nan),
        "flipped": value.flip(0),
        "float16": value.half(),
    }
    if change != "missing":
        tensors[tensor] = changed[change]
    save_file(tensors, run / "sae.safetensors")
    with pytest.raises(CorruptError, match=str(run / "sae.safetensors")):
        sae.load(run)


def rewrite(run: Path, **changes: Any) -> None:
    record = read_json(run / "config.json")
    record["autoencoder"] |= changes
    publish_json(run / "config.json", record)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_another_code_in_the_config_is_noticed(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    run = copy_of(saved[name], tmp_path)
    code = read_json(run / "config.json")["autoencoder"]["code"]
    if "width" in code:
        rewrite(run, code={**code, "width": WIDTH + 1})
        with pytest.raises(CorruptError, match=f"the code has another width than {WIDTH}"):
            sae.load(run)
    rewrite(run, code={"name": "topk", "k": K + 1})
    with pytest.raises(CorruptError):
        sae.load(run)


@pytest.mark.parametrize("field", ["transcodes", "skip", "per_token_norm"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_another_shape_in_the_config_is_noticed(name: str, field: str, saved: dict[str, Path], tmp_path: Path) -> None:
    run = copy_of(saved[name], tmp_path)
    described = read_json(run / "config.json")["autoencoder"]
    rewrite(run, **{field: not described[field]})
    with pytest.raises(CorruptError):
        sae.load(run)


@pytest.mark.parametrize("tensor", ["W_enc", "W_dec"])
def test_a_tied_encoder_that_differs_from_the_atoms_is_noticed(
    tensor: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(saved["matching_pursuit"], tmp_path)
    loaded = sae.load(run)
    assert loaded.W_enc is loaded.dictionary.W
    tensors = load_file(run / "sae.safetensors")
    tensors[tensor] = tensors[tensor] * 1.00001
    save_file(tensors, run / "sae.safetensors")
    with pytest.raises(CorruptError, match="W_enc and W_dec differ, but this code ties them"):
        sae.load(run)


def test_an_affine_map_and_its_inverse_are_symmetric() -> None:
    affine: Affine = fit("whiten", rows(300, 6, seed=5), [6])
    assert torch.allclose(affine.matrix, affine.matrix.T, atol=1e-5)
    assert torch.allclose(affine.matrix @ affine.inverse, torch.eye(6), atol=1e-3)
