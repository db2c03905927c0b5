"""`--contexts auto` finds how many contexts fit, leaves room for what comes later, and is recorded as a number."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sae.base.files import read_json
from sae.cli.main import parse
from sae.config import ConfigError, HarvestConfig, StoreConfig, from_json, to_json
from sae.harvest import room
from sae.harvest.attention import choose_attention
from sae.harvest.forward import Forward
from sae.harvest.harvesting import harvest_store, plan_harvest
from sae.harvest.room import find_room, largest
from sae.harvest.sites import resolve_sites
from sae.training.plan import make_plan
from sae.training.run import train
from sae.training.text import TextData
from tiny_models import FAMILIES

CONTEXT = 32


def forward_of(family: str = "llama") -> Forward:
    model = FAMILIES[family](vocab_size=512)
    return Forward(model, choose_attention(model, CONTEXT), context=CONTEXT, tell=print)


@pytest.mark.parametrize("most", [1, 2, 7, 64, 1000])
def test_the_number_found_fits_and_an_eighth_more_does_not(most: int) -> None:
    for limit in range(200):
        contexts = largest(lambda n, limit=limit: n <= limit, most)
        best = min(limit, most)
        assert contexts <= best
        assert best - contexts <= contexts / 8


def test_no_trial_is_larger_than_twice_what_fits() -> None:
    tried: list[int] = []
    largest(lambda n: tried.append(n) is None and n <= 37, 10_000)
    assert max(tried) <= 2 * 37


def test_on_a_cpu_a_pass_has_a_few_thousand_tokens_and_less_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = forward_of()
    sites = resolve_sites(forward.model, ["resid_post"], layer=1)
    assert find_room(forward, sites, vocabulary=512).contexts == 4096 // CONTEXT
    one = room.estimated_bytes(forward, sites, room.trial(1, CONTEXT, 512))
    monkeypatch.setattr(room, "available_memory", lambda device: 40 * one)
    assert find_room(forward, sites, vocabulary=512).contexts == 10
    assert find_room(forward, sites, vocabulary=512, spare=20 * one).contexts == 5
    with pytest.raises(ConfigError, match=f"--contexts auto: .* one context of {CONTEXT} tokens"):
        find_room(forward, sites, vocabulary=512, spare=38 * one)


def test_the_estimate_covers_what_a_pass_allocates() -> None:
    forward = forward_of()
    sites = resolve_sites(forward.model, ["resid_post"], layer=1)
    contexts = room.trial(8, CONTEXT, 512)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        forward.whole(contexts, sites)
    live, peak = 0, 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()  # type: ignore[attr-defined]
            peak = max(peak, live)
    assert peak <= room.estimated_bytes(forward, sites, contexts) <= 8 * peak


def test_auto_survives_json_and_what_is_neither_auto_nor_a_count_is_refused() -> None:
    config = HarvestConfig(model="demo", dataset="demo", layer=1, contexts="auto")
    assert from_json(HarvestConfig, json.loads(json.dumps(to_json(config)))) == config
    assert from_json(HarvestConfig, {**to_json(config), "contexts": 3}).contexts == 3
    with pytest.raises(ConfigError, match="--contexts 0: expected auto, or at least 1"):
        dataclasses.replace(config, contexts=0)
    with pytest.raises(ConfigError, match=r"config\.contexts"):
        from_json(HarvestConfig, {**to_json(config), "contexts": "many"})


def test_a_store_records_the_number_and_is_continued_with_it(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=CONTEXT, contexts="auto")
    config = StoreConfig(harvest=settings, store=tmp_path / "store", tokens=600)
    harvest_store(config)
    assert f"--contexts auto: {4096 // CONTEXT} contexts in a forward pass" in capsys.readouterr().err
    monkeypatch.setitem(room.MOST_TOKENS, "cpu", 512)
    longer = dataclasses.replace(config, tokens=900)
    assert plan_harvest(longer).config.harvest.contexts == 4096 // CONTEXT
    assert harvest_store(longer).tokens == 900
    with pytest.raises(ConfigError, match="contexts = 128, this run wants 16"):
        plan_harvest(dataclasses.replace(longer, harvest=dataclasses.replace(settings, contexts=16)))


def test_a_store_keeps_its_layout_and_one_that_is_complete_takes_no_route(
    tiny_model: Path, corpus: Path, tmp_path: Path, train_arguments: list[object]
) -> None:
    settings = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, contexts=8)
    store = StoreConfig(harvest=settings, store=tmp_path / "store", tokens=12_288)
    assert harvest_store(store).attention == "masked"
    padded = dataclasses.replace(settings, attention="padded")
    with pytest.raises(ConfigError, match=r"--attention padded: .* holds packed contexts; leave out"):
        harvest_store(dataclasses.replace(store, harvest=padded, tokens=13_000))
    given = [*map(str, train_arguments), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=r"--attention varlen: .* holds all tokens"):
        make_plan(parse([*given, "--attention", "varlen"]).config)


def test_workers_that_begin_a_store_must_name_a_number(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    settings = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=CONTEXT, contexts="auto")
    with pytest.raises(ConfigError, match="--contexts auto: not with several workers"):
        plan_harvest(StoreConfig(harvest=settings, store=tmp_path / "store", worker="0/2"))


def test_a_run_records_the_number_and_the_route_and_resumes_with_them(
    train_arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(argument) for argument in train_arguments]
    given[given.index("--contexts") + 1] = "auto"
    config = parse([*given, "--out", str(tmp_path / "run"), "--attention", "varlen"]).config
    train(config)
    said = capsys.readouterr().err
    assert "--contexts auto: 64 contexts in a forward pass (4,096 tokens, the most that auto takes)." in said
    assert "share contexts and do not see each other: varlen attention (--attention); --attention sets another." in said
    record = read_json(tmp_path / "run/config.json")
    assert record["train"]["harvest"]["contexts"] == 64
    assert record["harvest"]["attention"] == {"route": "varlen", "why": "--attention"}
    monkeypatch.setitem(room.MOST_TOKENS, "cpu", 512)
    (tmp_path / "run/sae.safetensors").unlink()
    resumed = make_plan(dataclasses.replace(config, resume=True))
    assert isinstance(resumed.data, TextData)
    assert resumed.data.config.harvest.contexts == 64
    padded = dataclasses.replace(config.harvest, attention="padded")
    with pytest.raises(ConfigError, match=r"--resume: harvest\.attention was 'varlen'"):
        make_plan(dataclasses.replace(config, resume=True, harvest=padded))
