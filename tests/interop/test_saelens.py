"""Files of SAELens: every architecture against its definition in `sae_lens.saes`, written out here in NumPy's terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import read

D, F, OUT, K = 6, 20, 4, 3
LATENTS = {
    "standard": ["b_enc"],
    "topk": ["b_enc"],
    "abstopk": ["b_enc"],
    "jumprelu": ["b_enc", "threshold"],
    "gated": ["b_gate", "b_mag", "r_mag"],
    "transcoder": ["b_enc"],
    "skip_transcoder": ["b_enc"],
    "jumprelu_transcoder": ["b_enc", "threshold"],
    "jumprelu_skip_transcoder": ["b_enc", "threshold"],
    "batchtopk": ["b_enc"],
    "matryoshka_batchtopk": ["b_enc"],
}
METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "gpt2-small",
    "hook_name": "blocks.1.hook_resid_post",
    "context_size": 64,
    "prepend_bos": True,
    "dataset_path": "some/text",
    "exclude_special_tokens": False,
    "seqpos_slice": [None],
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(architecture: str) -> dict[str, Tensor]:
    out = OUT if "transcoder" in architecture else D
    tensors = {"W_enc": draw(D, F, seed=1), "W_dec": draw(F, out, seed=2), "b_dec": draw(out, seed=3)}
    tensors |= {name: draw(F, seed=4 + i) / 2 for i, name in enumerate(LATENTS[architecture])}
    if "skip" in architecture:
        tensors["W_skip"] = draw(out, D, seed=9)
    if "batchtopk" in architecture:
        tensors["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    return tensors


def settings_of(architecture: str, /, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
    }
    if "topk" in architecture:
        settings |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if "transcoder" in architecture:
        settings["d_out"] = OUT
    return settings | changes


def written(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


def theirs(x: Tensor, t: dict[str, Tensor], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction as sae_lens 6.54 computes them."""
    architecture = settings["architecture"]
    norms = t["W_dec"].norm(dim=-1) if settings.get("rescale_acts_by_decoder_norm") else torch.ones(F)
    z, mean, deviation = x, 0, 1
    if settings["normalize_activations"] == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        z = (x - mean) / (deviation + 1e-5)
    if settings["apply_b_dec_to_input"]:
        z = z - t["b_dec"]
    if architecture == "gated":
        gate = z @ t["W_enc"] + t["b_gate"] > 0
        f = gate * torch.relu(z @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
    else:
        pre = (z @ t["W_enc"] + t["b_enc"]) * norms
        if "threshold" in t:
            f = torch.relu(pre) * (pre > t["threshold"])
        elif "topk_threshold" in t:
            f = torch.relu(pre) * (pre > t["topk_threshold"])
        elif "topk" in architecture:
            size = pre.abs() if architecture == "abstopk" else pre
            kept = torch.zeros_like(pre).scatter(-1, size.topk(K).indices, 1)
            f = kept * (pre if architecture == "abstopk" else torch.relu(pre))
        else:
            f = torch.relu(pre)
    out = (f / norms) @ t["W_dec"] + t["b_dec"]
    if "W_skip" in t:
        out = out + x @ t["W_skip"].T
    return f, out * deviation + mean


def check(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    x = draw(30, D, seed=100) * 2 + 1
    codes, reconstruction = read(folder).model(x)
    f, x_hat = theirs(x, tensors, settings)
    mine = codes.to_dense().detach()
    if settings["architecture"] == "abstopk":
        mine = mine[:, :F] - mine[:, F:]
    torch.testing.assert_close(mine, f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction.detach(), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", LATENTS)
def test_every_architecture_gives_the_numbers_of_its_definition(architecture: str, tmp_path: Path) -> None:
    tensors, settings = tensors_of(architecture), settings_of(architecture)
    check(written(tmp_path / "theirs", tensors, settings), tensors, settings)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"rescale_acts_by_decoder_norm": True}),
        ("batchtopk", {"rescale_acts_by_decoder_norm": True}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("jumprelu", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
    ],
)
def test_settings_that_change_the_numbers_are_followed(architecture: str, changes: dict, tmp_path: Path) -> None:
    tensors, settings = tensors_of(architecture), settings_of(architecture, **changes)
    check(written(tmp_path / "theirs", tensors, settings), tensors, settings)


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "gated"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_scale_of_the_inputs_is_built_in(architecture: str, rescaled: bool, tmp_path: Path) -> None:
    tensors, factor = tensors_of(architecture), 0.25
    settings = settings_of(architecture, normalize_activations="expected_average_only_in")
    settings["rescale_acts_by_decoder_norm"] = rescaled and "topk" in architecture
    folder = written(tmp_path / "theirs", tensors, settings)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor, "has_whitening": False}))
    x = draw(30, D, seed=100)
    _, scaled = theirs(x * factor, tensors, settings)
    torch.testing.assert_close(read(folder).model(x).reconstruction.detach(), scaled / factor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated"])
@pytest.mark.parametrize("centred", [False, True])
def test_a_whitening_of_the_inputs_is_built_in(architecture: str, centred: bool, tmp_path: Path) -> None:
    tensors = tensors_of(architecture)
    settings = settings_of(architecture, normalize_activations="covariance_whitening", apply_b_dec_to_input=centred)
    settings["rescale_acts_by_decoder_norm"] = architecture == "topk"
    folder = written(tmp_path / "theirs", tensors, settings)
    mean, matrix = draw(D, seed=50), torch.eye(D) + draw(D, D, seed=51) / 10
    inverse = matrix.inverse().contiguous()
    save_file({"mean": mean, "matrix": matrix, "inverse_matrix": inverse}, folder / "activation_whitening.safetensors")
    x = draw(30, D, seed=100)
    f, z_hat = theirs((x - mean) @ matrix, tensors, settings)
    codes, reconstruction = read(folder).model(x)
    torch.testing.assert_close(codes.to_dense().detach(), f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reconstruction.detach(), z_hat @ inverse + mean, rtol=1e-4, atol=1e-4)


def test_a_scale_that_is_not_in_the_files_is_named(tmp_path: Path) -> None:
    tensors, settings = tensors_of("standard"), settings_of("standard")
    changed = settings | {"normalize_activations": "expected_average_only_in"}
    folder = written(tmp_path / "theirs", tensors, changed)
    assert "do not have the factor" in read(folder).origin.notes[0]
    check(folder, tensors, changed)


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    tensors = tensors_of("topk")
    old = {
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": False,
        "model_name": "pythia-70m",
        "hook_point": "blocks.3.hook_mlp_out",
        "context_size": 128,
    }
    scaled = written(tmp_path / "theirs", tensors | {"scaling_factor": torch.ones(F)}, old)
    check(scaled, tensors, settings_of("topk"))
    origin = read(scaled).origin
    assert (origin.model, origin.sites, origin.bos) == ("EleutherAI/pythia-70m", ("blocks.3.hook_mlp_out",), True)


def test_the_logarithm_of_a_threshold_in_old_checkpoints_is_undone(tmp_path: Path) -> None:
    tensors = tensors_of("jumprelu")
    tensors["threshold"] = tensors["threshold"].abs() + 0.1
    old = {name: t for name, t in tensors.items() if name != "threshold"} | {
        "log_threshold": tensors["threshold"].log()
    }
    settings = settings_of("jumprelu")
    check(written(tmp_path / "theirs", old, settings), tensors, settings)


def test_what_the_files_say_is_kept(tmp_path: Path) -> None:
    more = METADATA | {
        "hook_name": "blocks.4.ln2.hook_normalized",
        "hf_hook_name": "model.layers.4.pre_feedforward_layernorm.output",
        "hook_name_out": "blocks.4.hook_mlp_out",
        "exclude_special_tokens": True,
        "seqpos_slice": [1, None],
    }
    settings = settings_of("transcoder", metadata=more)
    origin = read(written(tmp_path / "theirs", tensors_of("transcoder"), settings)).origin
    assert (origin.sites, origin.before_gain) == (("mlp_in.4",), True)
    assert origin.targets == ("blocks.4.hook_mlp_out",)
    assert (origin.model, origin.bos, origin.context, origin.dataset) == ("gpt2", True, 64, "some/text")
    assert origin.left_out == "special tokens, positions outside the slice [1, None]"


def test_a_hook_that_is_no_site_of_ours_is_taken_from_transformers(tmp_path: Path) -> None:
    more = METADATA | {"hook_name": "blocks.4.hook_odd", "hf_hook_name": "model.layers.4.mlp.input"}
    origin = read(written(tmp_path / "theirs", tensors_of("standard"), settings_of("standard", metadata=more))).origin
    assert origin.sites == ("model.layers.4.mlp:in",)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("standard", {"architecture": "temporal"}, "'temporal' cannot be held: its codes depend on earlier tokens"),
        ("standard", {"architecture": "matching_pursuit"}, "cannot be held: it selects an atom more than once"),
        ("standard", {"architecture": "mixture"}, "'mixture' is unknown; known: standard"),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale' cannot be held"),
        ("standard", {"normalize_activations": "constant_scalar_rescale"}, "'constant_scalar_rescale' cannot be held"),
        ("transcoder", {"normalize_activations": "layer_norm"}, "'layer_norm': cannot be held in a transcoder"),
        ("standard", {"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu' cannot be held"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(architecture: str, changes: dict, message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "theirs", tensors_of(architecture), settings_of(architecture, **changes))
    with pytest.raises(ConfigError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("architecture", "changes", "tensors", "message"),
    [
        ("jumprelu", {}, {"threshold": None}, r"architecture jumprelu\): threshold \(20,\) is missing"),
        ("standard", {}, {"threshold": torch.ones(F)}, "architecture standard.*threshold: not part of this format"),
        ("standard", {}, {"W_enc": draw(F, D, seed=0)}, r"W_enc has the shape \(20, 6\), expected \(6, 20\); it is tr"),
        ("standard", {"d_sae": 21}, {}, r"W_enc has the shape \(6, 20\), expected \(6, 21\)"),
        ("standard", {}, {"b_enc": torch.full((F,), torch.nan)}, "b_enc has numbers that are not finite"),
        ("topk", {"k": None}, {}, "k is missing"),
    ],
)
def test_damaged_files_are_refused_with_the_tensor_s_name(
    architecture: str, changes: dict, tensors: dict, message: str, tmp_path: Path
) -> None:
    weights = {name: t for name, t in (tensors_of(architecture) | tensors).items() if t is not None}
    with pytest.raises(CorruptError, match=message):
        read(written(tmp_path / "theirs", weights, settings_of(architecture, **changes)))
