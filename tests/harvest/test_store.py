"""Kept activations: the same rows in memory and on disk, after kills too; nothing damaged or foreign is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from sae.base.files import CorruptError, publish_file, publish_folder
from sae.config import ConfigError, HarvestConfig
from sae.data.documents import open_documents
from sae.harvest import rows as rows_module
from sae.harvest import store as stores
from sae.harvest import store_disk
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model
from sae.harvest.rows import ActivationError, Rows, to_stored
from sae.harvest.shards import sealed
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.store import DiskStore, MemoryStore, Store, fill_store
from sae.harvest.stream import Harvest
from sae.selftest.world import corpus_texts

TOKENS = 1500
SITES = ["resid_post.0", "mlp_out.1"]


class Source(NamedTuple):
    lm: LanguageModel
    sites: list[Site]
    texts: Path

    def harvest(self, **settings: Any) -> Harvest:
        config = HarvestConfig(model="m", dataset="d", **{"context": 32, "contexts": 4, **settings})
        return Harvest(self.lm, self.sites, open_documents(self.texts, split="all"), config)


@pytest.fixture(scope="module")
def source(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    lm = load_language_model(
        locate_model(str(tiny_model), trust_remote_code=False), device=torch.device("cpu"), precision="auto"
    )
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(12)))
    return Source(lm, resolve_sites(lm.model, SITES), path)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SHARD_ROWS", 400)


def identity(**changed: Any) -> dict[str, Any]:
    return {"format": 1, "sites": dict.fromkeys(SITES, 32), "precision": "float16", "context": 32, **changed}


def fill(store: Store, source: Source, tokens: int = TOKENS, progress: Callable[[int], None] = lambda n: None) -> Store:
    return fill_store(store, source.harvest(), tokens=tokens, progress=progress)


def rows_of(store: Store) -> dict[str, torch.Tensor]:
    """All rows that the store serves: activations, and the columns beside them."""
    columns = {name: torch.cat([getattr(part, name) for part in store.parts]) for name in Rows._fields[1:]}
    return {
        **store.read(range(store.rows), SITES).activations,
        **{name: c[: store.rows] for name, c in columns.items()},
    }


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("shards/*/*.safetensors"))


def legacy(store: DiskStore, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] = lambda t: None) -> None:
    """The same rows as a store of the first format, with changed tensors."""
    publish_file(folder / "identity.json", json.dumps({**store.identity, "format": 1}).encode())
    for index, (part, entry) in enumerate(zip(store.parts, store.shards, strict=True)):
        tensors = {f"activations.{site}": a.clone() for site, a in part.activations.items()}
        tensors |= {name: getattr(part, name).clone() for name in Rows._fields[1:]}
        change(tensors)
        with publish_folder(folder / "shards" / f"{index:06d}") as shard:
            save_file(tensors, shard / "rows.safetensors")
            (shard / "end.json").write_text(json.dumps(list(entry.end)))


def assert_same(ours: Store, theirs: Store) -> None:
    assert ours.rows == theirs.rows
    left, right = rows_of(ours), rows_of(theirs)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert values.equal(right[name]), name


@pytest.fixture(scope="module")
def expected(source: Source) -> Store:
    """The rows of one unbroken harvest, in memory."""
    return fill(MemoryStore(identity(), TOKENS), source)


def test_the_rows_are_those_of_the_stream(source: Source, expected: Store) -> None:
    stream = source.harvest()
    wanted = [stream.trained_on(harvested.rows) for harvested in stream.batches()]
    found = rows_of(expected)
    for name in SITES:
        assert found[name].equal(torch.cat([rows.activations[name] for rows in wanted])[:TOKENS].half())
    for name in Rows._fields[1:]:
        assert found[name].equal(torch.cat([getattr(rows, name) for rows in wanted])[:TOKENS])


def test_disk_and_memory_hold_the_same_rows(source: Source, expected: Store, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    assert_same(fill(DiskStore(folder, identity()), source), expected)
    assert len(shards_of(folder)) == 4
    again = DiskStore(folder, identity())
    again.limit = TOKENS
    assert_same(again, expected)


def test_any_rows_can_be_read_from_any_shard(source: Source, expected: Store, tmp_path: Path) -> None:
    store = fill(DiskStore(tmp_path, identity()), source)
    whole = expected.read(range(TOKENS), SITES).activations
    for rows in (
        range(0),
        range(3, 900),
        range(395, 405),
        torch.tensor([1499, 0, 400, 399, 7, 7]),
        torch.randperm(TOKENS),
    ):
        wanted = rows if isinstance(rows, torch.Tensor) else torch.tensor(list(rows), dtype=torch.int64)
        for held in (store, expected):
            found = held.read(rows, SITES[1:]).activations
            assert list(found) == SITES[1:]
            assert found[SITES[1]].equal(whole[SITES[1]][wanted])


class Killed(BaseException):
    """Ends a harvest as a kill would: nothing gets to clean up what it must not."""


@pytest.mark.parametrize("at", [100, 450, 900, 1400])
def test_a_killed_harvest_goes_on_behind_its_last_whole_shard(
    at: int, source: Source, expected: Store, tmp_path: Path
) -> None:
    seen = 0

    def kill(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen >= at:
            raise Killed

    with pytest.raises(Killed):
        fill(DiskStore(tmp_path, identity()), source, progress=kill)
    left = tmp_path / "shards" / "0-of-1" / ".partial-000009-killed"  # what a kill in the middle of writing leaves
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    again = DiskStore(tmp_path, identity())
    assert again.rows >= at - 400 - 128, "at most one shard is lost"
    passes: list[int] = []
    with again.writing():
        fill(again, source, progress=passes.append)
    assert_same(again, expected)
    assert passes[0] == sum(len(part.token) for part in again.parts) - sum(passes[1:])
    assert not left.exists()


def test_a_full_store_needs_no_forward_pass(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(DiskStore(tmp_path, identity()), source)
    monkeypatch.setattr(Harvest, "batches", lambda *_: pytest.fail("harvested again"))
    harvest = source.harvest()
    assert fill_store(DiskStore(tmp_path, identity()), harvest, tokens=TOKENS, progress=lambda n: None).rows == TOKENS


@pytest.mark.parametrize("asked", [[1], [333], [1280], [10, 25, 26, 400]])
def test_more_tokens_asked_later_extend_the_store(
    asked: list[int], source: Source, expected: Store, tmp_path: Path
) -> None:
    for tokens in asked:
        assert fill(DiskStore(tmp_path, identity()), source, tokens).rows == tokens
    assert_same(fill(DiskStore(tmp_path, identity()), source), expected)


def test_fewer_tokens_are_the_first_ones(source: Source, expected: Store, tmp_path: Path) -> None:
    fill(DiskStore(tmp_path, identity()), source)
    few = fill(DiskStore(tmp_path, identity()), source, 600)
    assert few.rows == 600
    for name, values in rows_of(few).items():
        assert values.equal(rows_of(expected)[name][:600])


def test_data_that_end_give_what_they_have_and_nothing_twice(source: Source, tmp_path: Path) -> None:
    total = sum(int((harvested.rows.kind == 0).sum()) for harvested in source.harvest().batches())
    for store in (MemoryStore(identity(), 10**5), DiskStore(tmp_path, identity())):
        assert fill(store, source, 10**5).rows == total
    assert fill(DiskStore(tmp_path, identity()), source, 10**5).rows == total


def test_several_sites_come_from_one_pass(source: Source, expected: Store) -> None:
    stream = source.harvest()
    _ = stream.first_pass
    calls: list[int] = []
    hook = source.lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        store = fill_store(MemoryStore(identity(), TOKENS), stream, tokens=TOKENS, progress=lambda n: None)
    finally:
        hook.remove()
    assert len(calls) <= -(-sum(stream.counts.values()) // (32 * 4)) + 1
    assert_same(store, expected)
    found = store.read(range(10), SITES).activations
    assert not found[SITES[0]].equal(found[SITES[1]])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"context": 64}, "context = 32, this run wants 64"),
        ({"sites": {"resid_post.2": 32}}, "sites = {'resid_post.0': 32, 'mlp_out.1': 32}, this run wants"),
        ({"precision": "float32"}, "precision = 'float16', this run wants 'float32'"),
        ({"data": {"spec": "other"}}, "data = None, this run wants {'spec': 'other'}"),
    ],
    ids=["context", "sites", "precision", "data"],
)
def test_a_store_of_another_harvest_is_refused_naming_the_field(
    changed: dict[str, Any], says: str, source: Source, tmp_path: Path
) -> None:
    fill(DiskStore(tmp_path / "s", identity()), source, 200)
    with pytest.raises(ConfigError) as refused:
        DiskStore(tmp_path / "s", identity(**changed))
    assert f"--store {tmp_path / 's'}" in str(refused.value)
    assert says in str(refused.value)
    assert "choose another folder" in str(refused.value)


def test_a_store_of_more_sites_serves_a_run_of_some(source: Source, tmp_path: Path) -> None:
    fill(DiskStore(tmp_path / "s", identity()), source, 200)
    few = DiskStore(tmp_path / "s", identity(sites={"resid_post.0": 32}))
    assert few.read(range(10), ["resid_post.0"]).activations["resid_post.0"].shape == (10, 32)


def test_a_folder_of_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty and is no activation store"):
        DiskStore(tmp_path, identity())
    with pytest.raises(ConfigError, match="a file; expected a folder"):
        DiskStore(tmp_path / "thesis.tex", identity())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A manifest that is whole, and says something else."""
    path = folder / "shards/0-of-1/manifest.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_bytes(sealed(record))


SHARD, MANIFEST = "shards/0-of-1/000002.safetensors", "shards/0-of-1/manifest.json"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit flipped in the rows": (lambda folder: _flip(folder / SHARD), f"{SHARD}: its SHA-256"),
    "rows cut short": (lambda folder: _cut(folder / SHARD), rf"{SHARD}: \d+ bytes, \d+ were written"),
    "rows missing": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: missing"),
    "another shard's rows": (
        lambda folder: shutil.copy(folder / SHARD.replace("2", "1"), folder / SHARD),
        f"{SHARD}: its SHA-256",
    ),
    "a bit flipped in the manifest": (lambda folder: _flip(folder / MANIFEST), f"{MANIFEST}: "),
    "the manifest cut short": (lambda folder: _cut(folder / MANIFEST), f"{MANIFEST}: cannot be read as JSON"),
    "a manifest of something else": (lambda folder: _reseal(folder, lambda r: r.pop("ended")), f"{MANIFEST}: not a"),
    "a shard of more rows than bytes": (
        lambda folder: _reseal(folder, lambda r: r["shards"][0].update(rows=1 << 63)),
        f"{MANIFEST}: not a",
    ),
    "a number changed in the record": (
        lambda folder: (folder / "identity.json").write_text(
            (folder / "identity.json").read_text().replace('"context": 32', '"context": 33')
        ),
        "identity.json: its content is not the one that was written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_naming_the_file_and_the_remedy(damage: str, source: Source, tmp_path: Path) -> None:
    fill(DiskStore(tmp_path, identity()), source)
    spoil, says = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(CorruptError, match=f"{says}.*delete the store and harvest again"):
        DiskStore(tmp_path, identity())


def test_a_large_store_is_compared_with_its_hashes_when_a_shard_is_first_read(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(DiskStore(tmp_path, identity()), source)
    _flip(tmp_path / SHARD)
    monkeypatch.setattr(store_disk, "VERIFIED_AT_ONCE", 0)
    store = DiskStore(tmp_path, identity())
    store.read(range(800), SITES)
    with pytest.raises(CorruptError, match=f"{SHARD}: its SHA-256"):
        store.read(range(700, 900), SITES)


LEGACY_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit flipped in the rows": lambda shard: _flip(shard / "rows.safetensors"),
    "rows missing": lambda shard: (shard / "rows.safetensors").unlink(),
    "the end changed": lambda shard: (shard / "end.json").write_text("[0, 0, 0]\n"),
    "no manifest": lambda shard: (shard / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", LEGACY_DAMAGES)
def test_a_damaged_shard_of_the_first_format_is_named(damage: str, source: Source, tmp_path: Path) -> None:
    legacy(DiskStore(fill(DiskStore(tmp_path / "new", identity()), source).place), tmp_path / "old")  # type: ignore[attr-defined]
    LEGACY_DAMAGES[damage](tmp_path / "old" / "shards" / "000002")
    with pytest.raises(CorruptError, match="shards/000002"):
        DiskStore(tmp_path / "old", identity())


def test_a_missing_shard_of_the_first_format_is_named(source: Source, tmp_path: Path) -> None:
    legacy(DiskStore(fill(DiskStore(tmp_path / "new", identity()), source).place), tmp_path / "old")  # type: ignore[attr-defined]
    (tmp_path / "old" / "shards" / "000001").rename(tmp_path / "elsewhere")
    with pytest.raises(CorruptError, match="shard 000001 is missing, 000002 is there"):
        DiskStore(tmp_path / "old", identity())


def test_shards_are_read_from_the_disk_and_not_copied(source: Source, tmp_path: Path) -> None:
    store = fill(DiskStore(tmp_path, identity()), source)
    maps = Path("/proc/self/maps")
    assert store.parts[0].activations[SITES[0]].dtype == torch.float16
    if maps.exists():
        assert str(tmp_path / "shards" / "0-of-1" / "000000.safetensors") in maps.read_text()


@pytest.mark.parametrize("value", [70_000.0, -70_000.0])
def test_what_does_not_fit_float16_is_named_with_site_and_remedy(value: float) -> None:
    rows = torch.zeros(3, 4)
    rows[1, 2] = value
    with pytest.raises(
        ActivationError, match=r"site s\.1: 7e\+04 in row 1 does not fit torch\.float16.*--store-precision bfloat16"
    ):
        to_stored(rows, torch.float16, "s.1")
    assert to_stored(rows, torch.bfloat16, "s.1")[1, 2].item() == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_activations_that_are_not_finite_are_never_kept(value: float, dtype: torch.dtype) -> None:
    rows = torch.zeros(3, 4)
    rows[2, 0] = value
    with pytest.raises(ActivationError, match=r"site s\.1: the model's activations are not finite"):
        to_stored(rows, dtype, "s.1")


def test_a_harvest_that_overflows_keeps_the_shards_before(
    source: Source, expected: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def overflowing(activations: torch.Tensor, dtype: torch.dtype, site: str, *rest: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return to_stored(activations * (1e9 if calls > 16 else 1), dtype, site, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(rows_module, "to_stored", overflowing)
        with pytest.raises(ActivationError, match=r'in document \d+ \("\w.*\.\.\."\) does not fit'):
            fill(DiskStore(tmp_path, identity()), source)
    assert 0 < DiskStore(tmp_path, identity()).rows < TOKENS
    assert_same(fill(DiskStore(tmp_path, identity()), source), expected)


@pytest.mark.parametrize("rows", [range(0), range(380, 420), torch.tensor([1499, 0, 400, 399, 7, 7])], ids=str)
def test_any_rows_are_read_with_their_columns(
    rows: range | torch.Tensor, source: Source, expected: Store, tmp_path: Path
) -> None:
    wanted = rows if isinstance(rows, torch.Tensor) else torch.tensor(list(rows), dtype=torch.int64)
    columns = rows_of(expected)
    for store in (fill(DiskStore(tmp_path, identity()), source), expected):
        found = store.read(rows, SITES)
        for name in Rows._fields[1:]:
            assert getattr(found, name).equal(columns[name][wanted]), name


def test_a_store_of_the_first_format_is_read_and_continued(source: Source, expected: Store, tmp_path: Path) -> None:
    fill(DiskStore(tmp_path / "new", identity()), source, 700)
    legacy(DiskStore(tmp_path / "new"), tmp_path / "old", lambda tensors: (tensors.pop("start"), tensors.pop("kind")))
    assert DiskStore(tmp_path / "old", identity()).rows == 700
    store = fill(DiskStore(tmp_path / "old", identity()), source)
    assert_same(DiskStore(tmp_path / "old", identity()), store)
    ours, theirs = rows_of(store), rows_of(expected)
    for name in (*SITES, "token", "document", "position"):
        assert ours[name].equal(theirs[name]), name
    for name in ("start", "kind"):
        assert (ours[name][:700] == -1).all()
        assert ours[name][700:].equal(theirs[name][700:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_stored_value_that_is_not_finite_is_named_with_file_and_row(
    value: float, source: Source, tmp_path: Path
) -> None:
    fill(DiskStore(tmp_path / "new", identity()), source)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        if int(tensors["token"].shape[0]) == 400 and not spoilt:
            spoilt.append(tensors[f"activations.{SITES[1]}"])
            spoilt[0][17, 3] = value

    spoilt: list[torch.Tensor] = []
    legacy(DiskStore(tmp_path / "new"), tmp_path / "old", spoil)
    store = DiskStore(tmp_path / "old", identity())
    store.read(range(TOKENS), SITES[:1])
    for rows in (range(TOKENS), torch.tensor([3, 17, 405])):
        with pytest.raises(CorruptError, match=rf"shards/000000/rows.safetensors: row 17 of site {SITES[1]} is not"):
            store.read(rows, SITES)
