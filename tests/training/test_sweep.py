"""A sweep: members on one read end with the bits of their own runs; they stop, fail and resume alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sae.base.files import read_json, sha256_of
from sae.config import HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.training.run import train
from sae.training.sweep import sweep

TOKENS, BATCH = 17_408, 256


@pytest.fixture(scope="module")
def base(tiny_model: Path, corpus: Path) -> TrainConfig:
    """68 steps over two buffers; the norm limit is so low that sites differ in their sinks."""
    harvest = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, contexts=8, max_norm=1.15)
    return TrainConfig(
        harvest=harvest,
        sae=SAEConfig(width=64, k=4),
        optim=OptimConfig(batch=BATCH),
        tokens=TOKENS,
        buffer_mb=1,
        log_every=8,
        out=Path("unset"),
    )


def changed(base: TrainConfig, out: Path, **settings: Any) -> TrainConfig:
    """The run with other settings, of whichever part has a field of that name."""
    parts = {}
    for name in ("harvest", "sae", "optim"):
        part = getattr(base, name)
        fields = {f.name for f in dataclasses.fields(part)}
        parts[name] = dataclasses.replace(part, **{n: settings.pop(n) for n in list(settings) if n in fields})
    return dataclasses.replace(base, **parts, out=out, **settings)


def members_of(base: TrainConfig, folder: Path, **settings: Any) -> list[TrainConfig]:
    """Three variants, two layers, two seeds, two widths, two batches, one that reads two sites."""
    each: dict[str, dict[str, Any]] = {
        "topk": {},
        "batchtopk": {"variant": "batchtopk", "k": 8},
        "relu": {"variant": "relu", "width": 96, "lr": 1e-3},
        "temporal": {"variant": "temporal"},
        "layer2": {"layer": 2},
        "seed1": {"seed": 1},
        "layer2-seed1": {"layer": 2, "seed": 1, "variant": "jumprelu"},
        "batch512": {"batch": 512},
        "crosscoder": {"variant": "crosscoder", "layer": None, "site": "resid_post.1,resid_post.2"},
    }
    return [changed(base, folder / name, **{**given, **settings}) for name, given in each.items()]


def weights_of(run: Path) -> str:
    return sha256_of(run / "sae.safetensors")


@pytest.fixture(scope="module")
def alone(base: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every member trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for config in members_of(base, folder):
        train(config)
    return folder


def test_members_of_a_live_read_end_with_the_bits_of_their_own_runs(
    base: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    members = members_of(base, tmp_path)
    results = sweep(members)
    assert [result.status for result in results] == ["trained"] * len(members)
    kept = set()
    for config, result in zip(members, results, strict=True):
        name = config.out.name
        assert weights_of(config.out) == weights_of(alone / name), name
        assert read_json(config.out / "config.json")["harvest"] == read_json(alone / name / "config.json")["harvest"]
        assert result.result is not None
        kept.add((result.result.harvested["ordinary"], result.result.harvested["sink"]))
    assert len(kept) > 1, "sites differ in their sinks, or the test shows nothing of them"
