"""What is written for Neuronpedia: its fields, its limits, and the store's numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_runs import collected_run
from sae.base.files import check_folder
from sae.config import ConfigError
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.interop.neuronpedia import export
from sae.runs.text import Run, open_run

UPLOAD = {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"}
DASHBOARD = {
    "feature_index", "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total",
    "n_tokens_in_prompt", "dataset", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "decoder_weights_dist", "vector", "activations",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy, since a latent of it is named here."""
    folder = tmp_path_factory.mktemp("named") / "run"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = FeatureStore(run.folder)
    store.annotations.set_names({int(np.argmax(store.scalars["count"])): {"name": "x" * 600, "method": "local:tiny"}})
    out = tmp_path_factory.mktemp("np") / "out"
    export(run.folder, out, model_id="tiny-llama")
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_upload_rows_hold_the_stores_numbers_within_the_limits(run: Run, exported: Path) -> None:
    check_folder(exported)
    store = FeatureStore(run.folder)
    found = read(exported / "upload" / "upload-0.json")
    assert set(found) == {"modelId", "source", "features"}
    assert (found["modelId"], found["source"]) == ("tiny-llama", "1-res-sparsight-128")
    assert 1 <= len(found["features"]) <= 128
    assert [f["index"] for f in found["features"]] == np.flatnonzero(store.scalars["count"] > 0).tolist()
    for feature in found["features"]:
        assert set(feature) == UPLOAD
        record = store.record(feature["index"])
        assert feature["density"] == record["count"] / store.info["tokens"]
        logits = store.logits(feature["index"])
        for end, ours in (("topLogits", "top"), ("bottomLogits", "bottom")):
            assert len(feature[end]) <= 20
            assert [e["token"] for e in feature[end]] == [e["token"] for e in logits[ours]]
            np.testing.assert_allclose(
                [e["value"] for e in feature[end]], [e["value"] for e in logits[ours]], rtol=1e-4
            )
        strongest = feature["activations"][0]
        assert max(strongest["values"]) == pytest.approx(record["max"], rel=1e-4)
        for example in feature["activations"]:
            assert len(example["tokens"]) == len(example["values"]) <= 1024
            assert example["quantileMin"] < example["quantileMax"]
        shares = {(a["quantileMin"], a["quantileFraction"]) for a in feature["activations"]}
        assert sum(share for _, share in shares) <= 1 + 1e-6


def test_a_long_name_is_cut_to_what_the_upload_takes(run: Run, exported: Path) -> None:
    features = read(exported / "upload" / "upload-0.json")["features"]
    (said,) = [e for f in features for e in f["explanations"]]
    assert said == {"text": "x" * 512, "methodName": "sparsight_local", "modelName": "tiny"}


def test_dashboard_batch_has_every_field_and_the_same_numbers(run: Run, exported: Path) -> None:
    store = FeatureStore(run.folder)
    batch = read(exported / "dashboard" / "batch-0.json")
    assert {k: batch[k] for k in batch if k != "features"} == {
        "model_id": "tiny-llama", "layer": 1, "sae_set": "res-sparsight", "sae_id_suffix": "128",
    }  # fmt: skip
    for feature in batch["features"]:
        assert set(feature) == DASHBOARD
        latent = feature["feature_index"]
        assert sum(feature["freq_hist_data_bar_heights"]) == store.scalars["count"][latent]
        assert len(feature["freq_hist_data_bar_heights"]) == len(feature["freq_hist_data_bar_values"])
        assert sum(feature["logits_hist_data_bar_heights"]) == 300
        assert feature["n_tokens_in_prompt"] == 64
        np.testing.assert_allclose(feature["vector"], run.model.dictionary.W[latent].detach(), rtol=1e-3, atol=1e-6)
        for example in feature["activations"]:
            assert (
                example["bin_min"] < example["values"][example["qualifying_token_index"]] <= example["bin_max"] * 1.0001
            )


def test_chosen_latents_go_into_files_of_at_most_128(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fired = np.flatnonzero(FeatureStore(run.folder).scalars["count"] > 0).tolist()
    monkeypatch.setattr("sae.interop.neuronpedia.A_FILE", 3)
    report = export(run.folder, tmp_path / "out", latents=fired[:7])
    assert report["files"] == 6
    sizes = [len(read(tmp_path / "out" / "upload" / f"upload-{n}.json")["features"]) for n in range(3)]
    assert sizes == [3, 3, 1]


def test_what_cannot_be_exported_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        export(run.folder, tmp_path)
    with pytest.raises(FeatureError, match="latents 0 to 127"):
        export(run.folder, tmp_path / "out", latents=[128])
    assert not (tmp_path / "out").exists()
