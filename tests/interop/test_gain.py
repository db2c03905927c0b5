"""A transcoder that was trained before a norm's gain reads the norm's output, and gives its authors' numbers there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sae
from conftest import save_tiny_model
from sae.cli.main import parse
from sae.config import ConfigError
from sae.interop import read
from sae.interop.gain import divided_by_gain, gain_of
from sae.interop.registry import named
from sae.selftest import layouts
from tiny_models import FAMILIES

NAME = "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_65"


def hooked(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the norm before the MLP of block 1, [B S, d] each."""
    seen: list[Tensor] = []
    norm = model.get_submodule("model.layers.1.pre_feedforward_layernorm")

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.extend((inputs[0], output))

    handle = norm.register_forward_hook(keep)
    with torch.no_grad():
        model(tokens)
    handle.remove()
    before, after = (tensor.flatten(0, 1) for tensor in seen)
    return before, after


def test_gemma_s_transcoder_gives_the_formula_s_numbers_at_its_site(tmp_path: Path) -> None:
    entry = named(NAME)
    assert entry is not None
    layouts.write(entry, tmp_path / "gemma-scope-2b-pt-transcoders")
    imported = read(tmp_path / "gemma-scope-2b-pt-transcoders" / entry.path)
    assert imported.origin.before_gain
    model = FAMILIES["gemma2"](vocab_size=300)
    before, after = hooked(model, torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0)))
    normalised = before.double() * torch.rsqrt(before.double().pow(2).mean(1, keepdim=True) + 1e-6)
    weights = {name: tensor.double() for name, tensor in layouts.row_vectors().items()}
    pre = normalised @ weights["W_enc"] + weights["b_enc"]
    f = torch.relu(pre) * (pre > weights["threshold"])
    folded = divided_by_gain(imported.model, gain_of(model, "model.layers.1"))
    codes, reconstruction = folded(after)
    expected = f @ weights["W_dec"] + weights["b_dec"]
    assert (codes.to_dense().double() - f).norm() < 1e-5 * f.norm()
    assert (reconstruction.double() - expected).norm() < 1e-5 * expected.norm()
    # with the gain still in its inputs it would say something else
    assert (imported.model.encode(after).to_dense().double() - f).norm() > 0.1 * f.norm()


def test_an_import_with_a_language_model_folds_the_gain_in(tmp_path: Path, corpus: Path) -> None:
    entry = named(NAME)
    assert entry is not None
    layouts.write(entry, tmp_path / "gemma-scope-2b-pt-transcoders")
    theirs = tmp_path / "gemma-scope-2b-pt-transcoders" / entry.path
    gemma = save_tiny_model("gemma2", tmp_path / "gemma")
    out = tmp_path / "out"
    arguments = ["--model", gemma, "--dataset", corpus, "--context", 32, "--out", out]
    shown = parse([str(a) for a in ("import", theirs, *arguments)]).run()
    assert (shown["site"], shown["target_site"]) == ("mlp_in.1", "mlp_out.1")
    record = json.loads((out / "config.json").read_text())
    assert not record["imported"]["before_gain"]
    assert record["imported"]["notes"] == [
        "it was trained on the output of the norm before the MLP, without the norm's gain",
        "W_enc is divided by the gain of the norm before the MLP in model.layers.1",
    ]
    from transformers import AutoModelForCausalLM

    gain = 1 + AutoModelForCausalLM.from_pretrained(gemma).model.layers[1].pre_feedforward_layernorm.weight
    torch.testing.assert_close(sae.load(out).W_enc * gain, layouts.row_vectors()["W_enc"].T)
    evaluated = parse(["eval", str(out), "--tokens", "512", "--downstream-tokens", "128", "--pca-tokens", "512"]).run()
    assert evaluated["fvu"]["value"] > 0


@pytest.mark.parametrize(("family", "block"), [("gemma2", "model.layers.2"), ("llama", "model.layers.0")])
def test_the_gain_is_what_the_norm_multiplies_by(family: str, block: str) -> None:
    model = FAMILIES[family]()
    part = model.get_submodule(block)
    expected = 1 + part.pre_feedforward_layernorm.weight if family == "gemma2" else part.post_attention_layernorm.weight
    torch.testing.assert_close(gain_of(model, block), expected.detach(), rtol=1e-6, atol=1e-7)


def test_a_layer_norm_has_no_such_gain() -> None:
    with pytest.raises(ConfigError, match="expected an RMS norm"):
        gain_of(FAMILIES["gpt2"](), "transformer.h.0")
