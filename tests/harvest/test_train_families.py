"""From a saved model of each of five families and more to a loaded autoencoder that explains its activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sae
from conftest import save_tiny_model
from sae.config import HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import open_documents
from sae.harvest.language_model import load_language_model, locate_model
from sae.harvest.sites import resolve_sites
from sae.harvest.stream import Harvest
from sae.training.run import train

SITES = {
    "gpt2": "resid_post",
    "gpt_neox": "resid_pre",
    "llama": "mlp_out",
    "gemma2": "attn_out",
    "bert": "mlp_in",
    "mamba": "resid_post",
    "bloom": "resid_post",
}


@pytest.mark.parametrize("family", SITES)
def test_a_short_run_on_a_family_ends_in_an_autoencoder_that_loads(family: str, corpus: Path, tmp_path: Path) -> None:
    model = save_tiny_model(family, tmp_path / "model")
    config = TrainConfig(
        harvest=HarvestConfig(
            model=str(model), dataset=str(corpus), layer=1, site=SITES[family], context=32, contexts=8
        ),
        sae=SAEConfig(width=96, k=8),
        optim=OptimConfig(batch=128),
        out=tmp_path / "run",
        tokens=3072,
        buffer_mb=1,
        device="cpu",
    )
    result = train(config)
    assert result.steps == 24
    assert 0 < result.last["fvu"] < 1
    assert result.last["l0"] == pytest.approx(8, abs=0.5)

    autoencoder = sae.load(tmp_path / "run")
    for name, tensor in autoencoder.state_dict().items():
        assert torch.isfinite(tensor.float()).all(), name
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["sites"]["inputs"][0]["name"] == f"{SITES[family]}.1"
    assert autoencoder.dim == record["sites"]["inputs"][0]["width"] == 32

    # on held-out documents, with the weights from the file: better than the mean, for raw activations
    lm = load_language_model(
        locate_model(str(model), trust_remote_code=False), device=torch.device("cpu"), precision="auto"
    )
    sites = resolve_sites(lm.model, [record["sites"]["inputs"][0]["name"]])
    heldout = Harvest(lm, sites, open_documents(corpus, split="heldout"), config.harvest)
    rows = heldout.trained_on(next(heldout.batches()).rows).activations[sites[0].name].float()
    with torch.no_grad():
        codes, reconstruction = autoencoder(rows)
    error = (rows - reconstruction).square().sum()
    assert error < (rows - rows.mean(0)).square().sum()
    assert (codes.to_dense() != 0).sum(1).max() <= 8
