"""Small files that other tools' own code saved, with the codes and reconstructions that it gave for them.

`python scripts/interop/run.py --samples` writes them; `make interop` compares larger ones, in both directions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient
from torch import Tensor

from sae.browser.app import create_app
from sae.cli.main import parse
from sae.config import ConfigError
from sae.features.store.store import FeatureStore
from sae.interop import read

SAMPLES = Path(__file__).parent / "samples"
CASES = sorted(
    str(path.relative_to(SAMPLES))[: -len(".expected.safetensors")] for path in SAMPLES.rglob("*.expected.*")
)
REFUSED = {
    "saelens/matching_pursuit": "selects an atom more than once",
    "saelens/temporal": "its codes depend on earlier tokens",
    "sparsify/groupmax": "activation 'groupmax' cannot be held",
    "llamascopium/glu": "use_glu_encoder cannot be held",
    "llamascopium/jumprelu-token_wise": "it depends on each input's norm",
}
BY_NORM = ("llamascopium/topk", "llamascopium/topk-inference", "llamascopium/topk-folded")
"""Cases whose values that tool divides by the atoms' norms once it has selected with them; ours are over unit atoms."""
JOURNEYS = {
    "saelens": "jumprelu",
    "sparsify": "topk",
    "dictionary_learning": "BatchTopKSAE",
    "llamascopium": "jumprelu-no_norm",
}


def folder_of(case: str) -> Path:
    """Where the files of a case lie, below folders that hold nothing else."""
    folder = SAMPLES / case
    while len(entries := list(folder.iterdir())) == 1 and entries[0].is_dir():
        folder = entries[0]
    return folder


def largest(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_every_tool_has_samples() -> None:
    assert {case.partition("/")[0] for case in CASES} == {*JOURNEYS, "circuit-tracer"}
    assert set(REFUSED) | set(BY_NORM) <= set(CASES)


@pytest.mark.parametrize("case", sorted(set(CASES) - set(REFUSED)))
@torch.no_grad()
def test_a_sample_gives_the_numbers_of_the_tool_that_saved_it(case: str) -> None:
    expected = load_file(SAMPLES / f"{case}.expected.safetensors")
    model = read(folder_of(case)).model
    codes, reconstruction = model(expected["inputs"])
    dense, theirs = codes.to_dense(), expected["codes"]
    assert 0 < (theirs != 0).float().mean() < 0.7
    assert torch.equal(dense != 0, theirs != 0)
    if case in BY_NORM:
        theirs = theirs * (dense.max(0).values / theirs.max(0).values).nan_to_num(1.0)
    assert largest(dense, theirs) < 1e-5
    assert largest(reconstruction, expected["reconstruction"]) < 1e-5


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_is_refused_by_name(case: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[case]):
        read(folder_of(case))


@pytest.mark.parametrize("tool", JOURNEYS)
def test_a_sample_goes_through_import_eval_features_and_the_page(
    tool: str, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    text = ["--model", tiny_model, "--dataset", corpus, "--context", 64, "--out", out]
    shown = parse([str(a) for a in ("import", folder_of(f"{tool}/{JOURNEYS[tool]}"), *text)]).run()
    assert shown["format"] == tool
    assert shown["site"] in ("blocks.1.hook_resid_post", "layers.1", "resid_post.1")
    report = parse(["eval", str(out), "--tokens", "1024", "--downstream-tokens", "512", "--pca-tokens", "1024"]).run()
    assert report["site"] == "resid_post.1"
    assert report["fvu"]["low"] <= report["fvu"]["value"] <= report["fvu"]["high"]
    assert parse(["features", str(out), "--tokens", "2048"]).run()["latents"] == 40
    latent = int(FeatureStore(out).scalars["count"].argmax())
    app = create_app([out], token="token", device="cpu")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get("/", params={"token": "token"})
        answer = client.get(f"/api/runs/0/latents/{latent}")
        assert answer.status_code == 200, answer.text
