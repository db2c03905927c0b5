"""Files of dictionary_learning: every class against `dictionary.py` and its trainers, written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import read

D, F, K = 6, 24, 3
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(name: str, **changes: Tensor) -> dict[str, Tensor]:
    linear = {"encoder.weight": draw(F, D, seed=1), "decoder.weight": draw(D, F, seed=2)}
    matrices = {
        "W_enc": draw(D, F, seed=1),
        "b_enc": draw(F, seed=3),
        "W_dec": draw(F, D, seed=2),
        "b_dec": draw(D, seed=4),
    }
    selecting = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.8)}
    states = {
        "AutoEncoder": {**linear, "encoder.bias": draw(F, seed=3), "bias": draw(D, seed=4)},
        "AutoEncoderNew": {**linear, "encoder.bias": draw(F, seed=3), "decoder.bias": draw(D, seed=4)},
        "GatedAutoEncoder": {
            **linear,
            "decoder_bias": draw(D, seed=4),
            "r_mag": draw(F, seed=5) / 4,
            "gate_bias": draw(F, seed=3),
            "mag_bias": draw(F, seed=6),
        },
        "AutoEncoderTopK": {**linear, "encoder.bias": draw(F, seed=3), "b_dec": draw(D, seed=4), **selecting},
        "BatchTopKSAE": {**linear, "encoder.bias": draw(F, seed=3), "b_dec": draw(D, seed=4), **selecting},
        "MatryoshkaBatchTopKSAE": {**matrices, **selecting, "group_sizes": torch.tensor([8, 16])},
        "JumpReluAutoEncoder": {**matrices, "threshold": draw(F, seed=5) / 2},
    }
    return states[name] | changes


def theirs(x: Tensor, name: str, s: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What `encode` and the forward pass of the class return."""
    W_enc = s["W_enc"] if "W_enc" in s else s["encoder.weight"].T
    W_dec = s["W_dec"] if "W_dec" in s else s["decoder.weight"].T
    if name == "AutoEncoder":
        norms = W_dec.norm(dim=1)
        f = torch.relu((x - s["bias"]) @ W_enc + s["encoder.bias"])
        return f * norms, f @ W_dec + s["bias"]
    if name == "AutoEncoderNew":
        f = torch.relu(x @ W_enc + s["encoder.bias"])
        return f, f @ W_dec + s["decoder.bias"]
    if name == "GatedAutoEncoder":
        pre = (x - s["decoder_bias"]) @ W_enc
        f = (pre + s["gate_bias"] > 0) * torch.relu(s["r_mag"].exp() * pre + s["mag_bias"])
        return f, f @ W_dec + s["decoder_bias"]
    b_enc = s["b_enc"] if "b_enc" in s else s["encoder.bias"]
    if name == "JumpReluAutoEncoder":
        pre = x @ W_enc + b_enc
        f = torch.relu(pre * (pre > s["threshold"]))
        return f, f @ W_dec + s["b_dec"]
    f = torch.relu((x - s["b_dec"]) @ W_enc + b_enc)
    if name == "AutoEncoderTopK":
        f = f * torch.zeros_like(f).scatter(-1, f.topk(K).indices, 1)
    else:
        f = f * (f > s["threshold"])
    return f, f @ W_dec + s["b_dec"]


def written(folder: Path, content: dict[str, Any], name: str | None, **more: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(content, folder / "ae.pt")
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_8",
    }
    settings = {"trainer": trainer | more, "buffer": {"ctx_len": 128, "io": "out"}}
    if name is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def check(path: Path, name: str, s: dict[str, Tensor]) -> None:
    x = draw(30, D, seed=9) * 2
    codes, reconstruction = read(path).model(x)
    f, x_hat = theirs(x, name, s)
    torch.testing.assert_close(codes.to_dense().detach(), f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction.detach(), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_gives_the_numbers_of_its_code(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "trainer_0", state(name), name)
    check(folder, name, state(name))
    origin = read(folder).origin
    assert (origin.model, origin.sites, origin.context) == ("EleutherAI/pythia-70m", ("resid_post.8",), 128)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_an_unset_threshold_keeps_every_positive_latent_and_is_noted(name: str, tmp_path: Path) -> None:
    unset = state(name, threshold=torch.tensor(-1.0))
    folder = written(tmp_path / "trainer_0", unset, name)
    check(folder, name, unset)
    assert "never set" in read(folder).origin.notes[0]


@pytest.mark.parametrize("name", ["AutoEncoder", "GatedAutoEncoder", "BatchTopKSAE", "JumpReluAutoEncoder"])
def test_the_biases_of_a_backup_are_scaled_to_raw_inputs(name: str, tmp_path: Path) -> None:
    factor, trained = 4.0, state(name)
    content = {
        "step": 100,
        "ae": trained,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(D)}}},
        "config": {"dict_class": name, "lm_name": "gpt2"},
        "norm_factor": factor,
    }
    path = written(tmp_path / "trainer_0", content, None)
    imported, x = read(path), draw(30, D, seed=9) * 8
    _, scaled = theirs(x / factor, name, trained)
    torch.testing.assert_close(imported.model(x).reconstruction.detach(), scaled * factor, rtol=1e-5, atol=1e-4)
    assert "step 100" in imported.origin.notes[0]
    assert imported.origin.model == "gpt2"


def test_a_checkpoint_is_read_with_the_settings_above_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "trainer_0", state("AutoEncoderTopK"), "AutoEncoderTopK", k=K)
    (folder / "checkpoints").mkdir()
    old = {name: t for name, t in state("AutoEncoderTopK").items() if name != "threshold"}  # before it had one
    torch.save(old, folder / "checkpoints" / "ae_1000.pt")
    check(folder / "checkpoints" / "ae_1000.pt", "AutoEncoderTopK", old)


def test_the_tokens_left_out_are_kept(tmp_path: Path) -> None:
    folder = written(tmp_path / "resid_post_layer_3" / "trainer_0", state("AutoEncoder"), "AutoEncoder")
    settings = json.loads((folder / "config.json").read_text())
    settings["trainer"]["submodule_name"] = None
    settings["buffer"] |= {"remove_bos": True, "max_activation_norm_multiple": 10}
    (folder / "config.json").write_text(json.dumps(settings))
    origin = read(folder).origin
    assert origin.sites == ("resid_post.3",)
    assert origin.left_out == "the first token of each context, norms over 10 x the median"


@pytest.mark.parametrize(
    ("name", "dict_class", "changes", "settings", "error", "message"),
    [
        ("AutoEncoder", "IdentityDict", {}, {}, ConfigError, "dict_class 'IdentityDict' is unknown; known: AutoEnc"),
        ("BatchTopKSAE", None, {}, {}, ConfigError, "those of AutoEncoderTopK or BatchTopKSAE; expected config.json"),
        ("AutoEncoder", "GatedAutoEncoder", {}, {}, CorruptError, "gate_bias, decoder_bias is missing"),
        (
            "AutoEncoder",
            "AutoEncoder",
            {},
            {"dict_size": 25},
            CorruptError,
            r"has the shape \(24, 6\), expected \(25, ",
        ),
        ("BatchTopKSAE", "BatchTopKSAE", {}, {"k": 9}, CorruptError, "k is 3, config.json has 9"),
        (
            "JumpReluAutoEncoder",
            "JumpReluAutoEncoder",
            {"W_dec": draw(D, F, seed=0)},
            {},
            CorruptError,
            r"W_dec has the shape \(6, 24\), expected \(24, 6\); it is transposed",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: str, dict_class: str | None, changes: dict, settings: dict, error: type, message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "trainer_0", state(name, **changes), dict_class, **settings)
    with pytest.raises(error, match=message):
        read(folder)
