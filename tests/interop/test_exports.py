"""Runs of every variant as other tools' files: exact when they are read back, or refused with what cannot be held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finished_runs import collected_run, finished_run
from made_runs import NORMALISE, SETTINGS, activations, allowed, made_run
from sae.base.files import check_folder, publish_json, read_json
from sae.cli.exchange import Export
from sae.cli.main import parse
from sae.config import ConfigError
from sae.features.store.store import FeatureStore
from sae.interop import assemble, read
from sae.interop.export import WRITERS, export
from sae.models.saved import load, save_weights
from sae.modules.codes import Code, JumpReLU, ReLU

CASES = [(name, normalise) for name in SETTINGS for normalise in NORMALISE if allowed(name, normalise)]
HELD: dict[str, set[str]] = {
    "saelens": {
        *("relu", "p_anneal", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "temporal"),
        *("transcoder-relu", "transcoder-jumprelu", "skip_transcoder", "skip_transcoder-relu"),
    },
    "sparsify": {"topk"},
    "dictionary_learning": {
        *("relu", "p_anneal", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "temporal"),
    },
    "circuit-tracer": {"transcoder-relu", "transcoder-jumprelu", "skip_transcoder", "skip_transcoder-relu"},
}
"""Format -> what it holds of a run whose sites have our names."""


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize(("name", "normalise"), CASES)
@torch.no_grad()
def test_an_export_is_exact_when_it_is_read_back(to: str, name: str, normalise: str, tmp_path: Path) -> None:
    run, out = made_run(tmp_path / "run", name, normalise), tmp_path / "out"
    if name not in HELD[to] or (normalise == "layer_norm" and to != "saelens"):
        with pytest.raises(ConfigError, match=rf"--to {to}: cannot hold .*; {run} is a "):
            export(run, to, out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        return
    export(run, to, out)
    check_folder(out)
    (out / "manifest.json").unlink()
    x = activations(64, 32, seed=3)
    ours, theirs = load(run)(x), read(out / "resid_post.1" if to == "sparsify" else out).model(x)
    assert torch.allclose(theirs.codes.to_dense(), ours.codes.to_dense(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(theirs.reconstruction, ours.reconstruction, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("to", "name", "normalise", "holds"),
    [
        ("saelens", "matching_pursuit", "scale", "a pursuit that selects an atom once"),
        ("saelens", "crosscoder", "scale", r"several sites \(resid_post.1, resid_post.2\)"),
        ("saelens", "transcoder", "scale", r"a topk code between two sites \(a transcoder\)"),
        ("sparsify", "jumprelu", "scale", "a threshold: it selects with top k alone"),
        ("sparsify", "gated", "scale", "a gated code"),
        ("sparsify", "topk", "layer_norm", "a per-token norm"),
        ("dictionary_learning", "topk", "layer_norm", "a per-token norm"),
        ("dictionary_learning", "skip_transcoder", "scale", "with a skip connection"),
        ("circuit-tracer", "topk", "scale", "an autoencoder of one site"),
        ("circuit-tracer", "transcoder", "scale", "it has relu and JumpReLU"),
    ],
)
def test_a_refusal_says_what_the_format_cannot_hold(
    to: str, name: str, normalise: str, holds: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--to {to}: cannot hold .*{holds}"):
        export(made_run(tmp_path / "run", name, normalise), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_sites(run: Path, sites: list[str], targets: list[str]) -> Path:
    record = read_json(run / "config.json")
    record["imported"] |= {"sites": sites, "targets": targets}
    publish_json(run / "config.json", record)
    return run


def test_a_transcoder_for_sparsify_reads_and_writes_one_module(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", "skip_transcoder-topk", "whiten")
    with_sites(run, ["gpt_neox.layers.1.mlp:in"], ["gpt_neox.layers.1.mlp"])
    assert export(run, "sparsify", tmp_path / "out")["hookpoint"] == "layers.1.mlp"
    x = activations(64, 32, seed=3)
    with torch.no_grad():
        ours, theirs = load(run)(x), read(tmp_path / "out" / "layers.1.mlp").model(x)
    assert torch.allclose(theirs.reconstruction, ours.reconstruction, rtol=1e-5, atol=1e-4)
    with_sites(run, ["gpt_neox.layers.1:in"], ["gpt_neox.layers.1.mlp"])
    with pytest.raises(ConfigError, match="it maps one module's input to its output"):
        export(run, "sparsify", tmp_path / "other")


def test_a_run_on_a_file_of_activations_is_written_without_a_site(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", "skip_transcoder-relu")
    record = read_json(run / "config.json")
    del record["imported"]
    publish_json(run / "config.json", record | {"kind": "tensors"})
    export(run, "saelens", tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["model_name"], metadata["prepend_bos"]) == (None, None, None)
    with pytest.raises(ConfigError, match="--to circuit-tracer: cannot hold a run without sites"):
        export(run, "circuit-tracer", tmp_path / "other")


def assembled_run(folder: Path, code: Code) -> Path:
    """A run of an autoencoder that was put together from tensors, with atoms of other norms than 1."""
    draw = torch.Generator().manual_seed(0)
    tensors = {"W_enc": (12, 6), "b_enc": (12,), "W_dec": (12, 6), "b_dec": (6,)}
    weights = {name: torch.randn(*shape, generator=draw) for name, shape in tensors.items()}
    model = assemble(code, **weights, centred=True, source="made here")
    folder.mkdir()
    description = save_weights(folder, model, torch.randn(32, 6, generator=draw))
    publish_json(folder / "config.json", {"kind": "weights", "autoencoder": description})
    return folder


@pytest.mark.parametrize("to", ["saelens", "dictionary_learning"])
def test_a_threshold_below_zero_is_refused_where_a_relu_applies(to: str, tmp_path: Path) -> None:
    run = assembled_run(tmp_path / "run", JumpReLU(12, theta=-0.5))
    with pytest.raises(ConfigError, match=r"thresholds below 0 \(12 latents\)"):
        export(run, to, tmp_path / "out")


@torch.no_grad()
def test_atoms_that_dictionary_learning_would_rescale_keep_their_norms(tmp_path: Path) -> None:
    run = assembled_run(tmp_path / "run", ReLU())
    assert export(run, "dictionary_learning", tmp_path / "out")["class"] == "JumpReluAutoEncoder"
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    ours, theirs = load(run)(x), read(tmp_path / "out").model(x)
    assert torch.allclose(theirs.codes.to_dense(), ours.codes.to_dense(), atol=1e-5)
    assert torch.allclose(theirs.reconstruction, ours.reconstruction, atol=1e-5)


def test_saelens_settings_are_what_its_loader_expects(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run = collected_run(tiny_model, corpus)
    parse(["export", str(run.folder), "--to", "saelens", "--out", str(tmp_path / "out")]).run()
    settings: dict[str, Any] = json.loads((tmp_path / "out" / "cfg.json").read_text())
    metadata = settings.pop("metadata")
    assert settings == {
        "architecture": "topk", "d_in": 32, "d_sae": 128, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none", "k": 8,
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    assert metadata["sae_lens_version"].startswith("6.")
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert metadata["hf_hook_name"] == "model.layers.1"
    assert (metadata["model_name"], metadata["context_size"], metadata["prepend_bos"]) == (str(tiny_model), 64, True)
    sparsity = load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]
    store = FeatureStore(run.folder)
    shares = torch.from_numpy(store.scalars["count"].astype("float64")) / store.info["tokens"]
    assert torch.allclose(10 ** sparsity.double(), shares + 1e-10, rtol=1e-4)
    origin = read(tmp_path / "out").origin
    assert (origin.model, origin.sites, origin.bos) == (str(tiny_model), ("blocks.1.hook_resid_post",), True)


def test_sites_are_spelled_as_each_tool_has_them(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run = finished_run(tiny_model, corpus).folder
    assert export(run, "sparsify", tmp_path / "sparsify")["hookpoint"] == "layers.1"
    about = read_json(tmp_path / "sparsify" / "config.json")
    assert (about["hookpoints"], about["ctx_len"]) == (["layers.1"], 64)
    export(run, "dictionary_learning", tmp_path / "dl")
    trainer = read_json(tmp_path / "dl" / "config.json")["trainer"]
    assert (trainer["dict_class"], trainer["layer"], trainer["submodule_name"]) == (
        "AutoEncoderTopK",
        1,
        "model.layers.1",
    )
    transcoder = made_run(tmp_path / "transcoder", "skip_transcoder")
    export(transcoder, "circuit-tracer", tmp_path / "ct")
    config = yaml.safe_load((tmp_path / "ct" / "config.yaml").read_text())
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")
    assert (tmp_path / "ct" / "layer_1.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to", "saelens"], "--out: missing; --to saelens writes a new folder"),
        (["--to", "saelens", "--out", "X", "--repo", "a/b"], "--repo a/b: applies to --to hub; --to saelens does not"),
        (["--to", "hub"], "--repo: missing"),
        (["--to", "hub", "--repo", "a/b", "--out", "X"], "--out X: --to hub writes no folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(["export", str(tmp_path), *flags]).run()


def test_an_existing_folder_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        export(tmp_path, "saelens", tmp_path)
    with pytest.raises(ConfigError, match="--to gguf: unknown; known: saelens, sparsify"):
        export(tmp_path, "gguf", tmp_path / "out")


def test_every_writer_is_a_choice_of_the_command() -> None:
    assert set(get_args(get_type_hints(Export)["to"])) == {*WRITERS, "neuronpedia", "static", "hub"}
