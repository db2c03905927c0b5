"""Codes and reconstructions of published formats against the formulas of their authors, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import Imported, read
from sae.interop.registry import Published, named
from sae.selftest import layouts
from sae.selftest.layouts import D, F, draw


def written(name: str, folder: Path) -> Path:
    """Where small files of a published autoencoder lie, below a folder of its repository's name."""
    entry = entry_of(name)
    layouts.write(entry, folder / entry.repository)
    return folder / entry.repository / entry.path


def entry_of(name: str) -> Published:
    entry = named(name)
    assert entry is not None
    return entry


def inputs(seed: int = 9) -> Tensor:
    return draw(64, D, seed=seed) * 2


def assert_same(imported: Imported, x: Tensor, f: Tensor, y: Tensor) -> None:
    """Codes [n, F] and reconstruction [n, d_out] equal those of a formula to 1e-5 relative; some latents are active."""
    codes, reconstruction = imported.model(x)
    assert 0 < (f != 0).double().mean() < 1
    for ours, theirs in ((codes.to_dense(), f), (reconstruction, y)):
        difference = (ours.double() - theirs).norm() / theirs.norm()
        assert difference < 1e-5


def jump_relu(pre: Tensor, theta: Tensor | float) -> Tensor:
    return torch.relu(pre) * (pre > theta)


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


W = double(layouts.row_vectors())
GEMMA = "gemma-scope-2b-pt-res/layer_12/width_16k/canonical"


@pytest.mark.parametrize("lower", [False, True])
def test_gemma_scope(lower: bool, tmp_path: Path) -> None:
    path = written(GEMMA, tmp_path)
    tensors = layouts.row_vectors() | {"scaling_factor": torch.ones(F)}
    layouts.save({name.lower() if lower else name: t for name, t in tensors.items()}, path / "params.npz")
    x = inputs()
    f = jump_relu(x.double() @ W["W_enc"] + W["b_enc"], W["threshold"])
    assert_same(read(path), x, f, f @ W["W_dec"] + W["b_dec"])


def test_gemma_scope_s_embedding_reads_embeddings_times_root_d(tmp_path: Path) -> None:
    path = written("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", tmp_path)
    embeddings = inputs()
    f = jump_relu(embeddings.double() @ W["W_enc"] + W["b_enc"], W["threshold"])
    assert_same(read(path), embeddings * D**0.5, f, (f @ W["W_dec"] + W["b_dec"]) * D**0.5)


def test_gemma_scope_2_adds_x_times_the_skip_untransposed(tmp_path: Path) -> None:
    path = written("gemma-scope-2-1b-it-transcoders-all/layer_2_width_16k_l0_small_affine", tmp_path)
    imported, x = read(path), inputs()
    f = jump_relu(x.double() @ W["W_enc"] + W["b_enc"], W["threshold"])
    assert_same(imported, x, f, f @ W["W_dec"] + W["b_dec"] + x.double() @ draw(D, D, seed=6).double())
    assert (imported.origin.sites, imported.origin.targets) == (("mlp_in.2",), ("mlp_out.2",))
    assert imported.origin.model == "google/gemma-3-1b-pt"
    assert imported.origin.notes == ("it reads the output of the norm before the MLP, with the norm's gain",)


def test_gemma_scope_2_s_cross_layer_transcoder_writes_to_its_layer_and_later_ones(tmp_path: Path) -> None:
    path = written("gemma-scope-2-1b-pt-clt/width_262k_l0_medium_affine/layer_23", tmp_path)
    imported, x = read(path), inputs()
    f = jump_relu(x.double() @ W["W_enc"] + W["b_enc"], W["threshold"])
    parts = torch.einsum("nf,fld->nld", f, draw(F, 26, D, seed=3).double()[:, 23:])
    parts[:, 0] += W["b_dec"] + x.double() @ draw(D, D, seed=6).double()
    assert_same(imported, x, f, parts.flatten(1))
    assert imported.origin.targets == ("mlp_out.23", "mlp_out.24", "mlp_out.25")


@pytest.mark.parametrize("kind", ["r", "tc"])
def test_llama_scope_equals_normalising_encoding_and_undoing(kind: str, tmp_path: Path) -> None:
    path = written(f"llama_scope_lx{kind}_8x/l1{kind}_8x", tmp_path)
    norms = json.loads((path / "hyperparams.json").read_text())["dataset_average_activation_norm"]
    s_in, s_out = (D**0.5 / norms[end] for end in ("in", "out"))
    assert (kind == "tc") == (s_in != s_out)
    x = inputs()
    pre = x.double() * s_in @ W["W_enc"] + W["b_enc"]
    lengths = W["W_dec"].norm(dim=1)
    # θ = 0.2 is a length in the units of the outputs
    active = pre * lengths / s_out > 0.2
    reconstruction = (torch.relu(pre) * active @ W["W_dec"] + W["b_dec"]) / s_out
    imported = read(path)
    assert_same(imported, x, torch.relu(pre) * active * lengths / s_out, reconstruction)
    assert imported.origin.before_gain == (kind == "tc")


def test_llama_scope_r1_has_a_threshold_a_latent_in_normalised_units(tmp_path: Path) -> None:
    path = written("llama_scope_r1_distill/800M-Slimpajama-0-OpenR1-Math-220k/L1R", tmp_path)
    s, x, lengths = D**0.5 / 3.5, inputs(), W["W_dec"].norm(dim=1)
    pre = x.double() * s @ W["W_enc"] + W["b_enc"]
    f = jump_relu(pre * lengths, (draw(F, seed=7).double() / 4).exp()) / lengths
    assert_same(read(path), x, f * lengths / s, (f @ W["W_dec"] + W["b_dec"]) / s)


def test_llama_scope_without_lengths_in_its_gate_keeps_its_atoms(tmp_path: Path) -> None:
    path = written("llama_scope_lxr_8x/l1r_8x", tmp_path)
    settings = json.loads((path / "hyperparams.json").read_text())
    changes = {"sparsity_include_decoder_norm": False, "apply_decoder_bias_to_pre_encoder": True}
    (path / "hyperparams.json").write_text(json.dumps({**settings, **changes}))
    s, x = D**0.5 / 3.5, inputs()
    pre = (x.double() * s - W["b_dec"]) @ W["W_enc"] + W["b_enc"]
    f = jump_relu(pre / s, 0.2)
    assert_same(read(path), x, f, f @ W["W_dec"] + W["b_dec"] / s)


@pytest.mark.parametrize("negative", [False, True])
def test_circuit_tracer_with_a_threshold_does_not_clamp(negative: bool, tmp_path: Path) -> None:
    path = written("mwhanna-qwen3-4b-transcoders/layer_2", tmp_path)
    theta = W["threshold"] * (-1 if negative else 1)
    weights = layouts.row_vectors()
    weights["activation_function.threshold"] = theta.float()
    del weights["threshold"]
    layouts.save({**weights, "W_enc": weights["W_enc"].T, "W_skip": draw(D, D, seed=6)}, path)
    x = inputs()
    pre = x.double() @ W["W_enc"] + W["b_enc"]
    f = pre * (pre > theta)
    assert (f < 0).any() == negative
    assert_same(read(path), x, f, f @ W["W_dec"] + W["b_dec"] + x.double() @ draw(D, D, seed=6).double().T)


def test_circuit_tracer_without_a_threshold_is_a_relu(tmp_path: Path) -> None:
    imported = read(written("mntss-llama-3.2-1b-transcoders/layer_2", tmp_path))
    x = inputs()
    f = torch.relu(x.double() @ W["W_enc"] + W["b_enc"])
    assert_same(imported, x, f, f @ W["W_dec"] + W["b_dec"])
    assert (imported.origin.sites, imported.origin.targets) == (("resid_mid.2",), ("mlp_out.2",))
    assert imported.origin.notes == ("it reads the residual before the norm of the MLP",)


def test_circuit_tracer_s_layers_are_selected_by_number(tmp_path: Path) -> None:
    path = written("mntss-llama-3.2-1b-524k-clt/layer_2", tmp_path)
    imported, x = read(f"{path.parent}:2"), inputs()
    pre = x.double() @ W["W_enc"] + W["b_enc"]
    f = pre * (pre > W["threshold"])
    parts = torch.einsum("nf,fld->nld", f, draw(F, 3, D, seed=3).double())
    parts[:, 0] += W["b_dec"]
    assert_same(imported, x, f, parts.flatten(1))
    assert imported.origin.targets == ("mlp_out.2", "mlp_out.3", "mlp_out.4")
    with pytest.raises(ConfigError, match=r"no layer_7.safetensors or W_enc_7.safetensors"):
        read(f"{path.parent}:7")


def test_qwen_scope_keeps_the_k_of_its_repository_s_name(tmp_path: Path) -> None:
    path = written("qwen-scope-3-1.7b-base-w32k-l50/layer2", tmp_path)
    weights, x = double(layouts.row_vectors(width=128)), inputs()
    pre = torch.relu(x.double() @ weights["W_enc"] + weights["b_enc"])
    kept = pre.topk(50, dim=1)
    f = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    assert_same(read(path), x, f, f @ weights["W_dec"] + weights["b_dec"])
    moved = tmp_path / "layer2.sae.pt"
    moved.write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="the file does not say k"):
        read(moved)


def test_goodfire_is_a_relu(tmp_path: Path) -> None:
    path = written("goodfire-llama-3.1-8b-instruct/layer_19", tmp_path)
    x = inputs()
    f = torch.relu(x.double() @ W["W_enc"] + W["b_enc"])
    assert_same(read(path), x, f, f @ W["W_dec"] + W["b_dec"])


def changed(path: Path, changes: dict[str, Tensor | None]) -> None:
    tensors = {**layouts.row_vectors(), **changes}
    layouts.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "params.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, r"threshold \(48,\) is missing"),
        ({"threshold": torch.ones(1)}, r"threshold has the shape \(1,\), expected \(48,\)"),
        ({"W_enc": draw(F, D)}, r"w_enc has the shape \(48, 32\), expected \(32, 48\); it is transposed"),
        ({"b_enc": torch.full((F,), float("nan"))}, "b_enc has numbers that are not finite"),
        ({"r_mag": draw(F)}, "r_mag: not part of this format"),
        ({"scaling_factor": torch.full((F,), 2.0)}, "scaling_factor is not 1"),
    ],
)
def test_wrong_tensors_are_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    path = written(GEMMA, tmp_path)
    changed(path, changes)
    with pytest.raises((CorruptError, ConfigError), match=message):
        read(path)


@pytest.mark.parametrize(
    "name",
    [
        GEMMA,
        "gemma-scope-2-1b-pt-res-all/layer_2_width_16k_l0_small",
        "llama_scope_lxr_8x/l1r_8x",
        "mwhanna-qwen3-4b-transcoders/layer_2",
        "qwen-scope-3-1.7b-base-w32k-l50/layer2",
        "goodfire-llama-3.1-8b-instruct/layer_19",
    ],
)
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    (file,) = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".npz", ".safetensors")]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CorruptError, match="cannot be read"):
        read(path, entry_of(name).of.format)
    with pytest.raises((CorruptError, ConfigError), match=r"cannot be read|is in no format"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "topk"}, "act_fn 'topk' cannot be held; expected jumprelu"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' cannot be held"),
        ({"use_glu_encoder": True}, "use_glu_encoder cannot be held"),
        ({"dataset_average_activation_norm": {"in": 3.0}}, "of blocks.1.hook_resid_post is None"),
    ],
)
def test_settings_of_llama_scope_that_cannot_be_held_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    path = written("llama_scope_lxr_8x/l1r_8x", tmp_path)
    settings = json.loads((path / "hyperparams.json").read_text())
    (path / "hyperparams.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises((ConfigError, CorruptError), match=message):
        read(path)


def test_a_skip_that_the_settings_name_and_the_file_lacks_is_refused(tmp_path: Path) -> None:
    path = written("gemma-scope-2-1b-pt-res-all/layer_2_width_16k_l0_small", tmp_path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "affine_connection": True}))
    with pytest.raises(CorruptError, match=r"affine_skip_connection \(32, 32\) is missing"):
        read(path)


def test_the_half_of_a_cross_layer_transcoder_is_refused(tmp_path: Path) -> None:
    path = written("mntss-llama-3.2-1b-524k-clt/layer_2", tmp_path)
    path.with_name("W_dec_2.safetensors").unlink()
    with pytest.raises(CorruptError, match=r"W_dec_2.safetensors is missing beside it"):
        read(path)
