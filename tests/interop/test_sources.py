"""Files come from the hub after their size was told, or not at all; a failure leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import COMMIT, Hub, stand_in

import sae
from conftest import save_tiny_model
from sae.cli.main import parse
from sae.config import ConfigError
from sae.interop import read
from sae.interop.registry import Published, named
from sae.interop.sources import fetch
from sae.selftest import layouts

NAME = "gemma-scope-2b-pt-res/layer_12/width_16k/canonical"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path / "hub", monkeypatch) as hub:
        yield hub


def published(hub: Hub, name: str = NAME) -> Published:
    entry = named(name)
    assert entry is not None
    layouts.write(entry, hub.folder / entry.repository)
    return entry


def test_size_and_source_are_told_before_anything_is_downloaded(hub: Hub) -> None:
    entry = published(hub)
    before: list[list[str]] = []
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        before.append(hub.downloads())

    fetch(NAME, tell)
    assert said == [f"{entry.repository}:{entry.path}: 1 file, 0.0 MiB, from {hub.address}/{entry.repository}."]
    assert before == [[]]
    assert hub.downloads() == [f"{entry.path}/params.npz"]


def test_a_second_time_nothing_is_downloaded(hub: Hub) -> None:
    published(hub)
    first = fetch(NAME, print)
    hub.requests.clear()
    assert fetch(NAME, print).path == first.path
    assert hub.downloads() == []


def test_an_import_by_short_name_records_what_is_known_of_the_set(hub: Hub, tmp_path: Path) -> None:
    published(hub)
    shown = parse(["import", NAME, "--out", str(tmp_path / "out")]).run()
    assert (shown["model"], shown["site"], shown["format"]) == ("google/gemma-2-2b", "resid_post.12", "gemma_scope")
    assert parse(["verify", str(tmp_path / "out")]).run()["verified"]
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())["imported"]
    assert (recorded["bos"], recorded["left_out"], recorded["context"]) == (True, "BOS, EOS and padding", 1024)
    assert (recorded["licence"], recorded["source"]) == ("cc-by-4.0", NAME)


def test_an_import_by_short_name_is_measured_on_its_language_model(hub: Hub, tmp_path: Path, corpus: Path) -> None:
    name = "gemma-scope-2b-pt-att/layer_1/width_16k/canonical"
    published(hub, name)
    gemma = save_tiny_model("gemma2", tmp_path / "gemma")
    arguments = ["--model", gemma, "--dataset", corpus, "--context", 32, "--out", tmp_path / "out"]
    shown = parse([str(a) for a in ("import", name, *arguments)]).run()
    assert shown["site"] == "layers.1.self_attn.o_proj:in"
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["sites"]["inputs"][0]["path"] == "model.layers.1.self_attn.o_proj"
    assert record["harvest"]["beginning"]["tokens"] == ["<s>"]


def test_load_takes_a_short_name(hub: Hub) -> None:
    entry = published(hub)
    # nothing was subtracted from the inputs of Gemma Scope, so that only the encoder's matrix is the file's
    torch.testing.assert_close(sae.load(NAME).W_enc, layouts.row_vectors()["W_enc"].T)
    assert hub.downloads() == [f"{entry.path}/params.npz"]


def test_the_licence_of_an_unlisted_repository_is_that_of_its_card(hub: Hub, tmp_path: Path) -> None:
    entry = published(hub, "goodfire-llama-3.1-8b-instruct/layer_19")
    hub.put("someone/else", {"sae.pt": hub.folder / entry.repository / entry.path})
    hub.put("someone/else", {"README.md": b"---\nlicense: mit\n---\nAn SAE."})
    fetched = fetch("someone/else:sae.pt", print)
    assert fetched.completed(read(fetched.path).origin).licence == "mit"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_80", r"nearest: layer_12/width_16k/average_l0_82"),
        ("google/gemma-scope-2b-pt-res", "holds 2 autoencoders; name one as hub_id:path"),
        ("google/gemma-scope-2b-pt-res:layer_12/width_16k", "path one of: layer_12/width_16k/average_l0_22, "),
        ("google/gemma-scope-3b", "the hub has no such repository .* near short names: "),
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_1", "nearest: layer_12/width_16k/average_l0_"),
        ("./gemma", "./gemma: no such file or folder"),
        ("a/b/c", "no published autoencoder has this name; near ones: "),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(source: str, message: str, hub: Hub) -> None:
    published(hub)
    published(hub, "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_22")
    with pytest.raises(ConfigError, match=message):
        fetch(source, print)
    assert hub.downloads() == []


def test_a_gated_repository_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published(hub)
    hub.gated.add(entry.repository)
    with pytest.raises(ConfigError, match=r"terms must be accepted on the hub first, then log in"):
        fetch(NAME, print)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    assert fetch(NAME, print).path.is_dir()


def test_a_download_that_breaks_off_is_refused_and_nothing_is_imported(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = published(hub)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut.add(f"{entry.path}/params.npz")
    with pytest.raises(ConfigError, match="cannot be read from the hub"):
        parse(["import", NAME, "--out", str(tmp_path / "out")]).run()
    assert not (tmp_path / "out").exists()
    hub.cut.clear()
    parse(["import", NAME, "--out", str(tmp_path / "out")]).run()


def test_without_the_hub_what_was_downloaded_before_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    published(hub)
    first = fetch(NAME, print)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said: list[str] = []
    again = fetch(NAME, said.append)
    assert again == first
    assert said == [
        "google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82: the hub cannot be reached; what was downloaded "
        "before is read."
    ]
    with pytest.raises(ConfigError, match="cannot be read from the hub"):
        fetch("gemma-scope-2b-pt-res/layer_3/width_16k/canonical", print)


def test_a_clone_of_a_repository_is_known_by_its_folders(hub: Hub, tmp_path: Path) -> None:
    entry = published(hub)
    hub.put_folder("clone/of", hub.folder / entry.repository)
    clone = hub.folder / entry.repository / entry.path
    origin = fetch(clone, print).completed(read(clone).origin)
    assert (origin.model, origin.sites) == ("google/gemma-2-2b", ("resid_post.12",))
    assert fetch(hub.folder, print).published is None
    snapshot = fetch(NAME, print).path
    assert COMMIT in str(snapshot)
    assert fetch(snapshot, print).published == entry._replace(name="gemma-scope-2b-pt-res/layer_12/width_16k/canonical")
