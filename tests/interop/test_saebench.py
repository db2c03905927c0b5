"""The form that SAEBench evaluates, against the contract of its custom_saes/base_sae.py and evals/core/main.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finished_runs import finished_run
from made_runs import made_run
from sae.config import ConfigError
from sae.interop.saebench import BenchConfig, BenchSAE, bench_sae
from sae.models.autoencoder import Autoencoder
from sae.models.saved import load
from sae.modules.codes import Gated, JumpReLU, ReLU, TopK

ASKED_FOR = (
    "model_name d_in d_sae hook_layer hook_name context_size hook_head_index architecture apply_b_dec_to_input "
    "finetuning_scaling_factor activation_fn_str activation_fn_kwargs prepend_bos normalize_activations dtype device "
    "model_from_pretrained_kwargs dataset_path dataset_trust_remote_code seqpos_slice training_tokens "
    "sae_lens_training_version neuronpedia_id"
).split()
"""The fields of SAEBench's CustomSAEConfig."""


def config(d_in: int = 16, d_sae: int = 48) -> BenchConfig:
    where = {"model_name": "gpt2", "hook_layer": 1, "hook_name": "blocks.1.hook_resid_post"}
    return BenchConfig(**where, d_in=d_in, d_sae=d_sae, architecture="topk", dtype="float32", device="cpu")


@pytest.mark.parametrize("code", [TopK(4), ReLU(), JumpReLU(48), Gated(48)], ids=lambda code: code.name)
def test_dense_codes_and_reconstructions_are_the_autoencoder_s(code) -> None:
    model = Autoencoder(16, 48, code)
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        model.dictionary.b.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    bench, x = BenchSAE(model, config()), torch.randn(2, 5, 16)
    codes, reconstruction = model(x.flatten(0, 1))
    torch.testing.assert_close(bench.encode(x), codes.to_dense().view(2, 5, 48))
    torch.testing.assert_close(bench.decode(bench.encode(x)), reconstruction.view(2, 5, 16))
    torch.testing.assert_close(bench(x), reconstruction.view(2, 5, 16))
    assert bench.W_enc.shape == (16, 48)
    assert bench.W_dec.shape == (48, 16)
    # the bias that the benchmark compares latents by: pre-activations are (x - b_dec) W_enc + b_enc
    pre = (x - bench.b_dec) @ bench.W_enc + bench.b_enc
    if code.name == "gated":
        torch.testing.assert_close(bench.b_mag, code.r.exp() * bench.b_enc + code.s)
    elif code.name == "relu":
        torch.testing.assert_close(bench.encode(x), pre.relu())


def test_a_run_says_where_it_belongs_in_the_fields_asked_for(tiny_model: Path, corpus: Path) -> None:
    bench = bench_sae(finished_run(tiny_model, corpus).folder, model_name="gpt2")
    assert set(ASKED_FOR) <= set(bench.cfg.to_dict())
    assert (bench.cfg.hook_name, bench.cfg.hook_layer) == ("blocks.1.hook_resid_post", 1)
    assert (bench.cfg.model_name, bench.cfg.architecture, bench.cfg.context_size) == ("gpt2", "topk", 64)
    assert (bench.cfg.d_in, bench.cfg.d_sae) == (32, 128)
    # SAEBench sets fields of its own
    bench.cfg.exclude_special_tokens = True  # pyright: ignore[reportAttributeAccessIssue]
    assert bench.to(device="cpu", dtype=torch.bfloat16) is bench
    assert (bench.dtype, bench.cfg.dtype, bench.device.type) == (torch.bfloat16, "bfloat16", "cpu")
    assert bench(torch.randn(2, 3, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("variant", "normalise", "said"),
    [
        ("transcoder", "scale", "transcodes"),
        ("skip_transcoder", "scale", "transcodes"),
        ("topk", "layer_norm", "per-token norm also needs its inputs"),
    ],
)
def test_what_cannot_be_decoded_from_codes_alone_is_refused(
    tmp_path: Path, variant: str, normalise: str, said: str
) -> None:
    model = load(made_run(tmp_path / "run", variant, normalise))
    with pytest.raises(ConfigError, match=said):
        BenchSAE(model, config())


def test_a_crosscoder_has_no_one_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one site with a TransformerLens hook, got resid_post\.1, resid_post\.2"):
        bench_sae(made_run(tmp_path / "run", "crosscoder"))
