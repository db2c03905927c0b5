"""A saved autoencoder loads as what it was, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae
from sae.base.files import HASH, SEALED, CorruptError, publish_json, read_json
from sae.config import ConfigError
from sae.models.autoencoder import Autoencoder
from sae.models.saved import SELF_TEST_ROWS, load, save_weights, verify
from sae.modules.codes import TopK

DIM, WIDTH, K = 12, 40, 4
TENSORS = {
    "W_enc": (WIDTH, DIM),
    "b_enc": (WIDTH,),
    "W_dec": (WIDTH, DIM),
    "b_dec": (DIM,),
    "selftest.inputs": (SELF_TEST_ROWS, DIM),
    "selftest.codes": (SELF_TEST_ROWS, WIDTH),
    "selftest.reconstruction": (SELF_TEST_ROWS, DIM),
}


def make_model() -> Autoencoder:
    model = Autoencoder(DIM, WIDTH, TopK(K))
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():
        model.b_enc.copy_(torch.randn(WIDTH, generator=generator) * 0.1)
        model.dictionary.b.copy_(torch.randn(DIM, generator=generator))
    return model


def probe(rows: int = 64) -> torch.Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    publish_json(folder / "config.json", {"autoencoder": save_weights(folder, make_model(), probe())})
    return folder


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_run_of_an_earlier_version_loads(kind: str) -> None:
    assert max(verify(Path(__file__).parents[1] / "old_runs" / kind)) < 1e-5


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def describe(run: Path, **changes: Any) -> None:
    """Change what config.json says of the autoencoder; None takes a field away."""
    record = read_json(run / "config.json")
    described = {**record["autoencoder"], **changes}
    record["autoencoder"] = {name: value for name, value in described.items() if value is not None}
    publish_json(run / "config.json", record)


def test_what_was_saved_is_what_loads(saved: Path) -> None:
    model, loaded, x = make_model(), load(saved), probe(100)
    assert isinstance(loaded, Autoencoder)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    with torch.no_grad():
        ours, theirs = loaded(x), model(x)
    assert ours.reconstruction.equal(theirs.reconstruction)
    assert ours.codes.to_dense().equal(theirs.codes.to_dense())


def test_codes_and_reconstruction_have_the_stated_shapes(saved: Path) -> None:
    model = sae.load(str(saved))
    codes = model.encode(probe(7))
    assert isinstance(codes, sae.SparseCodes)
    assert codes.values.shape == codes.indices.shape == (7, K)
    assert codes.to_dense().shape == (7, WIDTH)
    assert model.decode(codes).shape == (7, DIM)
    assert model.encode(probe(0)).to_dense().shape == (0, WIDTH)
    with pytest.raises(ValueError, match=r"x: expected \[N, 12\], got \(7, 13\)"):
        model.encode(torch.zeros(7, DIM + 1))


def test_the_file_holds_the_weights_and_a_self_test(saved: Path) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in load_file(saved / "sae.safetensors").items()} == TENSORS
    assert max(verify(saved)) < 1e-6


def test_a_self_test_shorter_than_usual_is_one(tmp_path: Path) -> None:
    publish_json(tmp_path / "config.json", {"autoencoder": save_weights(tmp_path, make_model(), probe(3))})
    assert load(tmp_path).width == WIDTH


def test_importing_sae_imports_no_torch_until_something_is_used() -> None:
    code = """
import sys, sae
assert "torch" not in sys.modules
sae.TrainConfig
assert "torch" not in sys.modules
sae.load
assert "torch" in sys.modules and "transformers" not in sys.modules
try:
    sae.laod
except AttributeError as error:
    assert "it offers" in str(error) and "load" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- damage ---


def tensor_bytes(path: Path, name: str) -> slice:
    """Where a tensor's values are in a .safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return slice(8 + length + begin, 8 + length + end)


def notice(run: Path) -> str:
    """What `load` says of a damaged run, or else `verify`."""
    try:
        load(run)
    except CorruptError as error:
        return str(error)
    with pytest.raises(CorruptError) as noticed:
        verify(run)
    return str(noticed.value)


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("name", TENSORS)
def test_one_bit_of_any_tensor_is_noticed(name: str, bit: int, run: Path) -> None:
    path = run / "sae.safetensors"
    data = bytearray(path.read_bytes())
    where = tensor_bytes(path, name)
    for place in (where.start, (where.start + where.stop) // 2, where.stop - 1):
        data[place] ^= 1 << bit
        path.write_bytes(data)
        assert str(path) in notice(run)
        data[place] ^= 1 << bit
    path.write_bytes(data)
    verify(run)


def test_one_bit_of_the_header_is_noticed(run: Path) -> None:
    path = run / "sae.safetensors"
    data = bytearray(path.read_bytes())
    for place in range(0, 8 + int.from_bytes(data[:8], "little"), 11):
        data[place] ^= 4
        path.write_bytes(data)
        assert str(path) in notice(run)
        data[place] ^= 4


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    "change",
    [
        lambda name, tensors: {n: t for n, t in tensors.items() if n != name},
        lambda name, tensors: {**{n: t for n, t in tensors.items() if n != name}, f"{name}_": tensors[name]},
        lambda name, tensors: {**tensors, name: tensors[name][:-1].clone()},
        lambda name, tensors: {**tensors, name: tensors[name][:0].clone()},
        lambda name, tensors: {**tensors, name: tensors[name].half()},
        lambda name, tensors: {**tensors, name: tensors[name].flatten()[None].clone()},
        lambda name, tensors: {**tensors, name: torch.full_like(tensors[name], float("nan"))},
        lambda name, tensors: {**tensors, name: torch.zeros_like(tensors[name])},
        lambda name, tensors: {**tensors, name: tensors[name] * 1.1},
        lambda name, tensors: {**tensors, name: tensors[name].flip(0)},
    ],
    ids=["missing", "renamed", "cut", "empty", "float16", "reshaped", "nan", "zero", "scaled", "flipped"],
)
def test_a_changed_tensor_is_noticed_on_loading(
    name: str, change: Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]], run: Path
) -> None:
    # not by the hash, which whoever changes a file can change too
    path = run / "sae.safetensors"
    save_file(change(name, load_file(path)), path)
    with pytest.raises(CorruptError, match=str(path)):
        load(run)


def test_one_value_that_is_no_number_does_not_hide_behind_the_other_distance(run: Path) -> None:
    path = run / "sae.safetensors"
    tensors = load_file(path)
    used = tensors["selftest.codes"].any(0).nonzero()[0]
    tensors["W_dec"][used] = float("nan")
    save_file(tensors, path)
    with pytest.raises(CorruptError, match="codes 0, of reconstruction nan"):
        load(run)


def test_weights_of_another_run_are_noticed(run: Path, tmp_path: Path) -> None:
    other = make_model()
    with torch.no_grad():
        other.W_enc.mul_(1.5)
    save_weights(tmp_path, other, probe())
    shutil.copy(tmp_path / "sae.safetensors", run)
    for read in (load, verify):
        with pytest.raises(CorruptError, match=r"SHA-256 is not the one config\.json records"):
            read(run)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_file_cut_short_is_noticed(keep: float, run: Path) -> None:
    path = run / "sae.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    for read in (load, verify):
        with pytest.raises(CorruptError, match=f"{path}: cannot be read"):
            read(run)


def test_missing_weights_are_named(run: Path) -> None:
    (run / "sae.safetensors").unlink()
    for read in (load, verify):
        with pytest.raises(CorruptError, match=r"sae\.safetensors: cannot be read"):
            read(run)


@pytest.mark.parametrize("k", [K - 1, K + 1, 1, WIDTH])
def test_another_k_in_the_config_is_noticed(k: int, run: Path) -> None:
    describe(run, code={"name": "topk", "k": k})
    with pytest.raises(CorruptError, match="self-test fails"):
        load(run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": WIDTH - 1}, r"W_enc is torch.float32 \(40, 12\), expected float32 \(39, 12\) by config.json"),
        ({"width": 10**12}, r"expected float32 \(1000000000000, 12\)"),
        ({"dim": DIM + 1}, r"expected float32 \(40, 13\)"),
        ({"dim": WIDTH, "width": DIM}, r"expected float32 \(12, 40\)"),
        ({"width": None}, r"config\.json: autoencoder: cannot be read \(KeyError\('width'\)\)"),
        ({"width": "wide"}, r"config\.json: autoencoder: cannot be read"),
        ({"width": [40]}, r"config\.json: autoencoder: cannot be read"),
        ({"code": None}, r"config\.json: autoencoder: cannot be read"),
        ({"code": {"k": 4}}, r"config\.json: autoencoder: cannot be read"),
        ({"code": "topk"}, r"config\.json: autoencoder: cannot be read"),
        ({"code": {"name": "topk", "k": 4, "temperature": 1}}, r"config\.json: autoencoder: cannot be read"),
        ({"code": {"name": "topkk", "k": 4}}, "did you mean 'topk'"),
        ({"code": {"name": "identity"}}, "self-test fails"),
    ],
)
def test_a_changed_description_is_noticed(changes: dict[str, Any], says: str, run: Path) -> None:
    describe(run, **changes)
    for read in (load, verify):
        with pytest.raises(CorruptError, match=says):
            read(run)


def test_a_missing_or_changed_hash_is_noticed(run: Path) -> None:
    for value in (None, "0" * 64):
        describe(run, sha256=value)
        for read in (load, verify):
            with pytest.raises(CorruptError, match="SHA-256"):
                read(run)


def test_a_config_edited_by_hand_is_refused_and_says_so(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace(f'"k": {K}', f'"k": {K + 1}'))
    for read in (load, verify):
        with pytest.raises(CorruptError, match=r"config\.json: its content is not what was written.* edited by hand"):
            read(run)


@pytest.mark.parametrize("key", [SEALED, HASH])
def test_a_config_that_lost_its_hash_is_refused(key: str, run: Path) -> None:
    path = run / "config.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    with pytest.raises(CorruptError, match=r"config\.json"):
        load(run)
    for name in (SEALED, HASH):
        record.pop(name, None)
    path.write_text(json.dumps({**record, "format": 3}))
    with pytest.raises(CorruptError, match="the hash of its content is missing"):
        load(run)


def test_a_run_from_before_hashes_opens_and_this_is_said_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**record, "format": 2}))
    load(run)
    load(run)
    assert capsys.readouterr().err.count("written before hashes of its files were kept") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"autoencoder": []}', '{"autoencoder": NaN}', '{"a": 1e999'])
def test_a_config_that_is_none_is_named(text: str, run: Path) -> None:
    (run / "config.json").write_text(text)
    for read in (load, verify):
        with pytest.raises(CorruptError, match=f"{run / 'config.json'}: "):
            read(run)


# --- what is not there ---


@pytest.mark.parametrize("place", ["config.json", "sae.safetensors", "eval.json", "checkpoints"])
def test_a_link_in_a_run_folder_is_refused_by_name(place: str, run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run / place).exists():
        (run / place).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run / place).symlink_to(elsewhere)
    for opens in (load, verify, sae.Run):
        with pytest.raises(CorruptError, match=rf"{place}: a symbolic link to {elsewhere}"):
            opens(run)


def test_a_link_to_a_run_folder_and_those_of_the_hub_s_cache_open(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert max(verify(tmp_path / "link")) < 1e-5
    snapshot, blobs = tmp_path / "models--a--b/snapshots/1", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "sae.safetensors"):
        shutil.copyfile(run / name, blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert max(verify(snapshot)) < 1e-5
    (snapshot / "eval.json").symlink_to("../../../run/config.json")
    with pytest.raises(CorruptError, match=r"eval.json: a symbolic link"):
        verify(snapshot)


def test_an_unfinished_run_says_how_to_go_on(run: Path) -> None:
    publish_json(run / "config.json", {"train": {}, "autoencoder": None})
    for read in (load, verify):
        with pytest.raises(ConfigError, match=f"not finished; finish it with: sae train --resume --out {run}"):
            read(run)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, says in (
        (tmp_path / "none", "no such run folder"),
        (tmp_path / "file", "a file; expected a run folder"),
        (tmp_path, r"it has no config\.json \(it holds file\)"),
        ("runs", "no such run folder"),
        ("a/b/c", "no such run folder"),
    ):
        for read in (load, verify):
            with pytest.raises(ConfigError, match=says):
                read(path)


def test_a_hub_id_without_a_network_is_a_clean_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="nobody/nothing: no such run folder, and it cannot be read from the hub"):
        load("nobody/nothing")
