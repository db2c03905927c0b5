"""Every published set is read by its short name, from a small repository of its layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import Hub, stand_in

from sae.config import ConfigError
from sae.harvest.sites import resolve_sites
from sae.interop import READERS, read
from sae.interop.importing import _spelled
from sae.interop.published import SETS
from sae.interop.registry import Published, at, entries, named, near
from sae.interop.sources import fetch
from sae.selftest import layouts
from tiny_models import FAMILIES

FAMILY = {
    "google/gemma-2-": "gemma2",
    "google/gemma-3-270m": "gemma3",
    "google/gemma-3-1b": "gemma3",
    "google/gemma-3-4b": "gemma3_vision",
    "google/gemma-3-12b": "gemma3_vision",
    "google/gemma-3-27b": "gemma3_vision",
    "meta-llama/": "llama",
    "deepseek-ai/": "llama",
    "Qwen/Qwen2.5": "qwen2",
    "Qwen/Qwen3": "qwen3",
    "openai-community/gpt2": "gpt2",
    "openai/gpt-oss": "gpt_oss",
    "EleutherAI/pythia": "gpt_neox",
}
"""How the id of a language model begins -> its tiny model."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path, monkeypatch) as hub:
        yield hub


def one_of(key: str) -> Published:
    """An autoencoder of a set, in a layer that tiny models have if the set has one."""
    names = [entry for entry in entries() if entry.of is SETS[key]]
    return next((entry for entry in names if (entry.layer or 0) < 3), names[0])


@pytest.mark.parametrize("key", [key for key, of in SETS.items() if of.format != "temporal"])
def test_a_published_set_is_read_by_name(key: str, hub: Hub) -> None:
    entry = one_of(key)
    layouts.write(entry, hub.folder / entry.repository)
    said: list[str] = []
    fetched = fetch(entry.name, said.append)
    assert len(said) == 1
    assert f"MiB, from {hub.address}/{entry.repository}" in said[0]
    model, origin = read(fetched.path, fetched.format)
    origin = fetched.completed(origin)
    assert origin.model == entry.of.model
    assert model.dim == layouts.D
    assert origin.sites, "neither the files nor the table say where it reads"
    x = layouts.draw(64, model.dim, seed=9)
    codes, reconstruction = model(x)
    assert codes.l0().sum() > 0
    assert torch.isfinite(reconstruction).all()


def tiny(model: str) -> torch.nn.Module:
    (family,) = [family for begin, family in FAMILY.items() if model.startswith(begin)]
    with torch.device("meta"):
        return FAMILIES[family]()


@pytest.mark.parametrize("key", [key for key, of in SETS.items() if of.site is not None and of.format != "temporal"])
def test_the_site_of_a_set_is_one_of_its_language_model(key: str) -> None:
    of, model = SETS[key], tiny(SETS[key].model)
    for pattern in (of.site, of.target):
        if pattern is not None:
            (site,) = resolve_sites(model, _spelled(model, pattern.format(layer=1)))
            assert site.width in (layouts.D, None)


def test_names_are_unique_and_found_by_their_place() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names)) > 11000
    for key in SETS:
        entry = one_of(key)
        assert named(entry.name) == entry
        place = at(entry.repository, entry.path)
        assert place is not None
        assert (place.path, place.of) == (entry.path, entry.of)


def test_every_format_of_the_table_has_a_reader() -> None:
    assert {of.format for of in SETS.values()} <= set(READERS)


def test_canonical_stands_for_the_average_l0_nearest_to_100() -> None:
    entry = named("gemma-scope-2b-pt-res/layer_12/width_16k/canonical")
    assert entry is not None
    assert (entry.repository, entry.path) == ("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")
    assert (entry.site, entry.width) == ("resid_post.12", "16k")


def test_an_average_l0_that_only_the_repository_knows_is_a_name() -> None:
    entry = named("gemma-scope-2b-pt-att/layer_3/width_65k/average_l0_31")
    assert entry is not None
    assert entry.site == "layers.3.self_attn.o_proj:in"
    assert entry.path == "layer_3/width_65k/average_l0_31"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gemma-scope-2b-pt-rse/layer_12/width_16k/canonical", "gemma-scope-2b-pt-res/layer_12/width_16k/canonical"),
        ("gemma-scope-2b-pt-res/layer_26/width_16k/canonical", "gemma-scope-2b-pt-res/layer_6/width_16k/canonical"),
        ("qwen-scope-3-8b-base-w64k-l50/layer36", "qwen-scope-3-8b-base-w64k-l50/layer3"),
        ("gemma-scope-2b-pt-res", "gemma-scope-2b-pt-res/"),
    ],
)
def test_a_wrong_name_is_refused_with_three_near_ones_before_any_network(name: str, nearest: str, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="no published autoencoder has this name; near ones: ") as refusal:
        fetch(name, print)
    assert str(refusal.value).partition("near ones: ")[2].count(", ") == 2
    assert nearest in str(refusal.value)
    assert hub.requests == []


def test_near_names_are_those_of_the_same_set() -> None:
    assert all(name.startswith("llama_scope_lxr_8x/") for name in near("llama_scope_lxr_8x/l32r_8x"))


def test_what_cannot_be_held_is_refused_by_name_before_any_download(hub: Hub, tmp_path: Path) -> None:
    entry = one_of("temporal-sae-gemma-2-2b")
    layouts.write(entry, hub.folder / entry.repository)
    with pytest.raises(ConfigError, match="a temporal SAE predicts a part of every code from earlier tokens"):
        fetch(entry.name, print)
    assert hub.requests == []
    layouts.write(entry, tmp_path / "theirs")
    with pytest.raises(ConfigError, match="a temporal SAE predicts"):
        read(tmp_path / "theirs" / entry.path)


def test_a_place_on_the_hub_is_known_without_its_short_name(hub: Hub) -> None:
    entry = one_of("gemma-scope-2b-pt-mlp")
    layouts.write(entry, hub.folder / entry.repository)
    fetched = fetch(f"{entry.repository}:{entry.path}", print)
    origin = fetched.completed(read(fetched.path).origin)
    assert (origin.model, origin.sites, origin.bos) == ("google/gemma-2-2b", (f"mlp_out.{entry.layer}",), True)
    assert (origin.left_out, origin.context, origin.licence) == ("BOS, EOS and padding", 1024, "cc-by-4.0")


def test_settings_above_a_file_come_with_it_and_nothing_else(hub: Hub) -> None:
    entry = one_of("mwhanna-qwen3-4b-transcoders")
    layouts.write(entry, hub.folder / entry.repository)
    hub.put(entry.repository, {"layer_30.safetensors": b"another layer", "README.md": b"---\nlicense: mit\n---\n"})
    fetch(entry.name, print)
    assert sorted(hub.downloads()) == ["config.yaml", f"layer_{entry.layer}.safetensors", "wanb-config.yaml"]


def test_all_names_are_plain() -> None:
    assert all(re.fullmatch(r"[\w.:/-]+", entry.name) for entry in entries())
    assert json.dumps([entry.path for entry in entries()]).isascii()
