"""`sae export --to hub`: what is uploaded, what the card says, and that it loads from there; on a local stand-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_push import pushable
from huggingface_hub import ModelCard

import sae
from finished_runs import finished_run
from made_runs import made_run
from sae.base.files import read_json
from sae.cli.main import parse
from sae.config import ConfigError


def push(run: Path, *flags: str) -> dict[str, Any]:
    return parse(["export", str(run), "--to", "hub", *flags]).run()


@pytest.fixture
def run(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with an evaluation."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    parse(["eval", str(folder), "--tokens", "1024", "--downstream-tokens", "0", "--pca-tokens", "1024"]).run()
    return folder


def test_a_pushed_run_loads_by_its_name_and_gives_the_same_codes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pushable(tmp_path / "hub", monkeypatch) as hub:
        pushed = push(run, "--repo", "user/name", "--private", "--licence", "mit")
        assert pushed["address"] == f"{hub.address}/user/name"
        loaded = sae.load("user/name")
        names = {path.name for path in (hub.folder / "user" / "name").iterdir()}
        assert names == {"config.json", "sae.safetensors", "eval.json", "README.md", ".private"}
        assert json.loads((hub.folder / "user" / "name" / ".private").read_text()) is True
        card = (hub.folder / "user" / "name" / "README.md").read_text()
        record = read_json(hub.folder / "user" / "name" / "config.json")
        push(run, "--repo", "user/name")  # another commit
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    assert loaded.encode(x).to_dense().equal(sae.load(run).encode(x).to_dense())
    assert record["train"]["out"] == "run", "no path of this machine"
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["license"]) == ("sparsight", "mit")
    assert {"sparse-autoencoder", "sparsight", "topk"} <= set(data["tags"])
    fvu = read_json(run / "eval.json")["fvu"]
    shown = f"{fvu['value']:.4g} [{fvu['low']:.4g}, {fvu['high']:.4g}]"
    assert f"| FVU | {shown} |" in card
    beside = card.partition("### Beside its controls")[2].partition("### Every measure")[0]
    assert f"| this autoencoder | {shown} |" in beside
    for row in read_json(run / "eval.json")["controls"]:
        assert f"| {row['control']} | {row['fvu']['value']:.4g}" in beside
    assert 'sae.load("user/name")' in card


def test_a_card_without_an_evaluation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(tmp_path / "run", "skip_transcoder")
    with pushable(tmp_path / "hub", monkeypatch) as hub:
        push(made, "--repo", "user/name")
        card = (hub.folder / "user" / "name" / "README.md").read_text()
        assert sae.load("user/name").W_skip is not None
    assert "It has not been evaluated" in card
    assert "model.decode(codes, x)" in card
    assert "license" not in ModelCard(card).data.to_dict()


def test_without_a_token_and_where_the_hub_refuses_nothing_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_run(tmp_path / "run", "topk")
    with pushable(tmp_path / "hub", monkeypatch) as hub:
        hub.gated.add("other/name")
        with pytest.raises(ConfigError, match=r"--repo other/name: the hub did not take it .*403"):
            push(made, "--repo", "other/name")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(ConfigError, match=r"--repo user/name: the hub did not take it .*401"):
            push(made, "--repo", "user/name")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        with pytest.raises(ConfigError, match="--repo user/name: no token for the hub; log in with: hf auth login"):
            push(made, "--repo", "user/name")
        assert list(hub.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["name", "a/b/c", "user/na me"])
def test_a_name_that_is_no_repository_s_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--repo"):
        push(made_run(tmp_path / "run", "topk"), "--repo", name)


def test_a_damaged_run_is_not_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(tmp_path / "run", "topk")
    content = bytearray((made / "sae.safetensors").read_bytes())
    content[-3] ^= 0x40
    (made / "sae.safetensors").write_bytes(content)
    with pushable(tmp_path / "hub", monkeypatch) as hub:
        with pytest.raises(ValueError, match=r"SHA-256|self-test"):
            push(made, "--repo", "user/name")
        assert hub.requests == []
