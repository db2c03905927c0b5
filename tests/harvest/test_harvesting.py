"""`sae harvest`: several places in one pass into a store that runs are trained from."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import forked
import sae.harvest.store
from sae.base.files import publish_json, read_json, sha256_of
from sae.cli.harvest import with_layers
from sae.cli.main import main, parse
from sae.config import ConfigError
from sae.harvest.store import DiskStore, Worker
from sae.harvest.stream import Harvest
from sae.training.plan import make_plan
from sae.training.run import train


def arguments(model: Path, corpus: Path, store: object, *more: object) -> list[str]:
    given = (
        "harvest", "--model", model, "--dataset", corpus, "--layer", "0,1", "--tokens", 3000, "--context", 64,
        "--contexts", 4, "--store", store, *more,
    )  # fmt: skip
    return [str(argument) for argument in given]


def training(model: Path, corpus: Path, store: object, out: Path, *more: object) -> list[str]:
    given = (
        "train", "--model", model, "--dataset", corpus, "--layer", 1, "--tokens", 3000, "--context", 64,
        "--contexts", 4, "--width", 64, "--k", 4, "--batch", 256, "--store", store, "--out", out, *more,
    )  # fmt: skip
    return [str(argument) for argument in given]


def test_layers_with_commas_are_places_of_one_pass() -> None:
    assert with_layers(["--layer", "6,9", "--tokens", "5"]) == ["--tokens", "5", "--site", "resid_post.6,resid_post.9"]
    assert with_layers(["--layer=6,9", "--site=mlp_in,mlp_out"])[-1] == "mlp_in.6,mlp_in.9,mlp_out.6,mlp_out.9"
    assert with_layers(["--layer", "6"]) == ["--layer", "6"]
    with pytest.raises(ConfigError, match="--layer 6,x: expected layers"):
        with_layers(["--layer", "6,x"])


def test_a_run_is_trained_from_a_harvest_of_more_places(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    main(arguments(tiny_model, corpus, tmp_path / "store"))
    command = parse(training(tiny_model, corpus, tmp_path / "store", tmp_path / "run"))
    result = train(command.config)
    assert result.available == 3000
    assert result.harvested.get("ordinary", 0) == 0


def rows_by_place(store: DiskStore, site: str) -> dict[tuple[int, int, int], bytes]:
    """(document, start, position) -> the bytes of the activation there; every place once."""
    rows = store.read(range(store.rows), [site])
    places = zip(rows.document.tolist(), rows.start.tolist(), rows.position.tolist(), strict=True)
    found = {place: row.numpy().tobytes() for place, row in zip(places, rows.activations[site].float(), strict=True)}
    assert len(found) == store.rows, "no row is stored twice"
    return found


def test_workers_share_the_documents_and_leave_none_out(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    whole, shared, few = tmp_path / "whole", tmp_path / "shared", tmp_path / "texts.jsonl"
    few.write_text("".join(corpus.read_text().splitlines(keepends=True)[:60]))
    for store, worker in ((whole, None), (shared, "1/3"), (shared, "0/3"), (shared, "2/3")):
        more = () if worker is None else ("--worker", worker)
        main(arguments(tiny_model, few, store, "--tokens", 10**6, "--store-precision", "float32", *more))
    one, many = DiskStore(whole), DiskStore(shared)
    assert one.ended
    assert many.ended
    assert one.rows == many.rows > 3000
    documents = [set(part.document.tolist()) for part in many.parts]
    assert all(left.isdisjoint(right) for left, right in itertools.combinations(documents, 2))
    assert {d % 3 for d in documents[0]} == {0}
    # segments are cut where contexts end, so a token's neighbours may differ, but not which tokens there are
    counts = [Counter(store.places().token.tolist()) for store in (one, many)]
    assert counts[0] == counts[1]
    assert one.identity["measured"] == many.identity["measured"], "limits do not depend on the worker"


def test_a_run_is_trained_from_the_harvest_of_many_workers_and_resumes_on_its_rows_though_more_came(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for worker in ("0/2", "1/2"):
        main(arguments(tiny_model, corpus, store, "--worker", worker))
    assert DiskStore(store).part_rows == [1500, 1500]
    with pytest.raises(SystemExit):
        main(training(tiny_model, corpus, store, tmp_path / "more", "--tokens", 5000))
    refused = capsys.readouterr().err
    assert "holds 3000 tokens of 2 workers so far; run sae harvest --tokens 5000 --worker i/2" in refused
    main(training(tiny_model, corpus, store, tmp_path / "whole", "--checkpoint-every", 256, "--keep-checkpoints", 20))
    # the run as it stood after 4 of its 11 steps
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for name in ("sae.safetensors", "probe.safetensors"):
        (tmp_path / "broken" / name).unlink(missing_ok=True)
    record = read_json(tmp_path / "broken/config.json")
    publish_json(tmp_path / "broken/config.json", {**record, "autoencoder": None})
    steps = sorted((int(p.name), p) for p in (tmp_path / "broken/checkpoints").iterdir() if p.name.isdecimal())
    for step, path in steps:
        if step > 4:
            shutil.rmtree(path)
    for worker in ("0/2", "1/2"):
        main(arguments(tiny_model, corpus, store, "--worker", worker, "--tokens", 5000))
    assert DiskStore(store).part_rows == [1500, 1000, 1500, 1000]
    main(["train", "--resume", "--out", str(tmp_path / "broken")])
    assert "Resuming at step 4" in capsys.readouterr().err
    ours, theirs = (sha256_of(tmp_path / run / "sae.safetensors") for run in ("broken", "whole"))
    assert ours == theirs


REFUSED: dict[str, tuple[list[str], str]] = {
    "another number of workers": (["--worker", "0/3"], "is harvested by 1; expected i/1"),
    "another context": (["--context", "32"], "context = 64, this run wants 32; pass the store's --context"),
    "another precision": (
        ["--store-precision", "int8"],
        "precision = 'float16', this run wants 'int8'; leave --store-precision out",
    ),
    "a layer that it lacks": (["--layer", "0,2"], "name a site of the store"),
    "no such worker": (["--worker", "3/3"], "--worker 3/3: expected i/n with i from 0 to n - 1"),
}


@pytest.fixture(scope="module")
def harvested(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("harvests") / "store"
    main(arguments(tiny_model, corpus, store))
    return store


@pytest.mark.parametrize("case", REFUSED)
def test_another_harvest_into_a_store_is_refused_with_the_remedy(
    case: str, tiny_model: Path, corpus: Path, harvested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, says = REFUSED[case]
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tiny_model, corpus, harvested, *more))
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("what", ["weights", "tokenizer", "text"])
def test_a_run_on_another_model_tokenizer_or_text_is_refused(
    what: str, tiny_model: Path, corpus: Path, harvested: Path, tmp_path: Path
) -> None:
    model, texts = tmp_path / "model", tmp_path / "texts.jsonl"
    shutil.copytree(tiny_model, model)
    shutil.copy(corpus, texts)
    if what == "weights":
        tensors = load_file(model / "model.safetensors")
        tensors[min(tensors)][0] += 1
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    if what == "tokenizer":
        path = model / "tokenizer_config.json"
        path.write_text(path.read_text().replace("{", '{"model_max_length": 77,', 1))
    says = {"weights": "model_sha256 = ", "tokenizer": "tokenizer_sha256 = ", "text": "data = "}
    command = parse(training(model, texts if what == "text" else corpus, harvested, tmp_path / "run"))
    with pytest.raises(ConfigError, match=says[what]):
        make_plan(command.config)
    moved = parse(training(shutil.copytree(tiny_model, tmp_path / "moved"), corpus, harvested, tmp_path / "run"))
    make_plan(moved.config)  # the same weights elsewhere are the same model


def test_two_writers_of_one_range_are_refused_and_two_workers_are_not(
    tiny_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tiny_model, corpus, tmp_path / "s", "--worker", "0/2"))
    with DiskStore(tmp_path / "s", worker=Worker(0, 2)).writing():
        with pytest.raises(SystemExit):
            main(arguments(tiny_model, corpus, tmp_path / "s", "--worker", "0/2", "--tokens", 4000))
        assert f"another process (pid {os.getpid()}) is harvesting into" in capsys.readouterr().err
        main(arguments(tiny_model, corpus, tmp_path / "s", "--worker", "1/2"))


def in_small_shards(given: list[str]) -> None:
    sae.harvest.store.SHARD_ROWS = 512
    forked.command(given)


def test_a_harvest_stopped_by_a_signal_says_how_to_go_on_and_loses_nothing(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    given = arguments(tiny_model, corpus, tmp_path / "s", "--tokens", 6_000)
    process = forked.Forked(in_small_shards, given)
    deadline = time.monotonic() + 120
    while not (tmp_path / "s/shards/0-of-1/000001.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to continue" in errors
    kept = DiskStore(tmp_path / "s").rows
    assert 1024 <= kept < 6_000
    main(given)
    main(arguments(tiny_model, corpus, tmp_path / "whole", "--tokens", 6_000))
    ours, theirs = (rows_by_place(DiskStore(tmp_path / name), "resid_post.1") for name in ("s", "whole"))
    assert ours == theirs


def test_a_dry_run_says_what_a_store_takes_and_writes_nothing(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    for precision, site in (("float16", 2 * 32), ("float32", 4 * 32), ("int8", 32 + 4 + 6)):
        given = arguments(tiny_model, corpus, tmp_path / precision, "--store-precision", precision, "--dry-run")
        told = parse(given).run()
        assert not (tmp_path / precision).exists()
        assert told["tokens"] == 3000
        assert told["bytes_a_token"] == 21 + 2 * site
        main(given[:-1])
        entries = DiskStore(tmp_path / precision).shards
        assert sum(entry.bytes for entry in entries) == pytest.approx(3000 * told["bytes_a_token"], rel=0.01)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_sweep_takes_a_store_of_more_places_than_it_needs(
    precision: str, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "store", tmp_path / "sweep"
    for worker in ("0/2", "1/2"):
        more = ("--layer", "0,1,2", "--store-precision", precision, "--worker", worker)
        main(arguments(tiny_model, corpus, store, *more))
    monkeypatch.setattr(Harvest, "batches", lambda *_: pytest.fail("harvested again"))
    given = training(
        tiny_model, corpus, store, out, "--layer", "0,1", "--variant", "topk,relu", "--evaluate-tokens", 500
    )
    main(["sweep", *given[1:], "--downstream-tokens", "0"])
    names = {path.parent.name for path in out.glob("*/sae.safetensors")}
    assert names == {"layer0-topk", "layer1-topk", "layer0-relu", "layer1-relu"}
    assert read_json(out / "layer1-topk" / "config.json")["harvest"]["store_precision"] == precision
