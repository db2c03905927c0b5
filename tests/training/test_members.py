"""A sweep: members on one read end with the bits of their own runs; they stop, fail and resume alone."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from sae.base.files import read_json, sha256_of
from sae.base.progress import Interrupted
from sae.config import ConfigError, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.training import sweep_space
from sae.training.checkpoint import load_newest, steps_in
from sae.training.run import train
from sae.training.sweep import plan_sweep, sweep
from sae.training.sweep_space import ROOM, memory_bytes
from sae.training.trainer import Trainer

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


SOME = ("topk", "relu", "layer2", "seed1", "batch512")


def some_of(base: TrainConfig, folder: Path, **settings: Any) -> list[TrainConfig]:
    return [config for config in members_of(base, folder, **settings) if config.out.name in SOME]


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_members_on_kept_rows_end_with_the_bits_of_their_own_runs(kept: str, base: TrainConfig, tmp_path: Path) -> None:
    rows = {"buffer_mb": 512} if kept == "memory" else {"store": tmp_path / "store"}
    settings = {"tokens": 6_144, "epochs": 2, **rows}
    sweep(some_of(base, tmp_path / "sweep", **settings))
    for config in some_of(base, tmp_path / "alone", **settings):
        train(config)
        assert weights_of(config.out) == weights_of(tmp_path / "sweep" / config.out.name), config.out.name


def test_a_member_that_diverges_stops_with_a_checkpoint_and_the_others_go_on(
    base: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    members = [
        changed(base, tmp_path / "topk"),
        changed(base, tmp_path / "wild", variant="relu", lr=1e30),
        changed(base, tmp_path / "seed1", seed=1),
    ]
    first, wild, second = sweep(members)
    assert (first.status, wild.status, second.status) == ("trained", "failed", "trained")
    assert wild.error is not None
    assert "is not finite; the step was not taken. Try a lower --lr" in wild.error
    newest = load_newest(tmp_path / "wild" / "checkpoints")
    assert newest is not None
    assert f"step {newest.trainer['taken']}:" in wild.error
    assert not (tmp_path / "wild" / "sae.safetensors").exists()
    for name in ("topk", "seed1"):
        assert weights_of(tmp_path / name) == weights_of(alone / name)
    again = sweep(members)
    assert [result.status for result in again] == ["kept", "failed", "kept"]
    assert again[1].error == wild.error, "resumed from its checkpoint, it stops at the same step"


def test_members_go_on_from_their_own_checkpoints_after_a_signal(
    base: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = some_of(base, tmp_path, checkpoint_every=8 * BATCH, keep_checkpoints=9)
    step, taken = Trainer.step, 0

    def counted(self: Trainer, *given: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 292:
            signal.raise_signal(signal.SIGINT)
        step(self, *given)

    monkeypatch.setattr(Trainer, "step", counted)
    with pytest.raises(Interrupted, match="run the same sweep again"):
        sweep(members)
    steps = {config.out.name: int(steps_in(config.out / "checkpoints")[-1].name) for config in members[:-1]}
    assert steps["topk"] > 64, "in the second buffer"
    for checkpoint in steps_in(tmp_path / "topk" / "checkpoints")[2:]:
        shutil.rmtree(checkpoint)  # as if it had been killed while it was behind, in the first buffer
    shutil.rmtree(tmp_path / "relu")
    results = sweep(members)
    assert {result.status for result in results} == {"trained"}
    for config in members:
        assert weights_of(config.out) == weights_of(alone / config.out.name), config.out.name


def test_members_are_trained_in_parts_where_memory_has_no_room_for_all(
    base: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    members = [config for config in members_of(base, tmp_path) if config.out.name in ("topk", "layer2", "seed1")]
    two = memory_bytes(plan_sweep(members[:2]).members)
    room = two["activations"] + 1.2 * two["weights_gradients_moments"]  # beside the language model, once it is loaded
    monkeypatch.setattr(sweep_space, "available_memory", lambda device: int(room / ROOM))
    sweep(members)
    assert "Memory has room for some members at a time; part 2 of 2: seed1." in capsys.readouterr().err
    for config in members:
        assert weights_of(config.out) == weights_of(alone / config.out.name)
    monkeypatch.setattr(sweep_space, "available_memory", lambda device: int(room / 4))
    with pytest.raises(ConfigError, match=r"sweep: other takes \d+ MiB of memory .* lower --width or --buffer-mb"):
        sweep([changed(base, tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_what_one_read_cannot_feed_is_refused_by_name(base: TrainConfig, alone: Path, tmp_path: Path) -> None:
    def refused(*others: TrainConfig) -> str:
        with pytest.raises(ConfigError) as error:
            sweep([changed(base, tmp_path / "one"), *others])
        return str(error.value)

    assert "two members have the folder" in refused(changed(base, tmp_path / "one", seed=1))
    for name, value in {"context": 32, "max_norm": 5.0, "tokens": 4096, "epochs": 2, "store": tmp_path / "s"}.items():
        assert f"sweep: --{name.replace('_', '-')} is " in refused(changed(base, tmp_path / "two", **{name: value}))
    assert "topk: was trained with sae.k 4, now 8" in refused(changed(base, alone / "topk", k=8))
    with pytest.raises(ConfigError, match="sweep: no member"):
        sweep([])
    assert list(tmp_path.iterdir()) == []
