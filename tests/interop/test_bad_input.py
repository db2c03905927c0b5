"""Files that are damaged, hostile, or not what they say: refused by name, never executed, nothing left behind."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.base.files import CorruptError
from sae.cli.main import parse
from sae.interop import read

D, F = 16, 16


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "executed"))


def square(seed: int = 0) -> dict[str, Tensor]:
    """A square autoencoder whose encoder resembles its unit atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    noise = torch.randn(F, D, generator=generator) / 10
    return {"encoder.weight": atoms + noise, "encoder.bias": torch.zeros(F), "W_dec": atoms, "b_dec": torch.zeros(D)}


def sparsify(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 4, "d_in": D, "num_latents": F} | changes))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["ae.pt", "8.pt", "sae_weights.pt"])
def test_code_in_a_pickle_is_never_executed(name: str, zipped: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "theirs" / name
    path.parent.mkdir()
    content = {"pre_bias": torch.zeros(D), "W_E": torch.zeros(D, F), "payload": Payload(mark)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"payload": Payload(mark)}))
    for place in (path, path.parent):
        with pytest.raises(CorruptError, match=f"{name}: .*not executed"):
            read(place)
    with pytest.raises(CorruptError):
        read(path, format="dictionary_learning")
    assert not mark.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert mark.exists()  # the payload works


@pytest.mark.parametrize("format", ["auto", "sparsify"])
def test_a_truncated_file_is_named(format: str, tmp_path: Path) -> None:
    folder = sparsify(tmp_path / "layers.1", square())
    file = folder / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"sae\.safetensors: cannot be read"):
        read(folder, format=format)


def test_a_truncated_torch_file_is_named(tmp_path: Path) -> None:
    torch.save({"pre_bias": torch.zeros(1000)}, tmp_path / "8.pt")
    (tmp_path / "8.pt").write_bytes((tmp_path / "8.pt").read_bytes()[:2000])
    assert not zipfile.is_zipfile(tmp_path / "8.pt")
    with pytest.raises(CorruptError, match=r"8\.pt: "):
        read(tmp_path / "8.pt")


def test_a_member_that_says_it_is_larger_than_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "8.pt"
    torch.save({"pre_bias": torch.zeros(10)}, path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last one of the archive's list
    content[entry + 20 : entry + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"8\.pt: .* says 2,147,483,647 bytes, and the file has"):
        read(path)


def test_broken_settings_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file({"W_dec": torch.zeros(F, D), "b_dec": torch.zeros(D)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text('{"architecture": "stand')
    with pytest.raises(CorruptError, match=r"cfg\.json: cannot be read as JSON"):
        read(folder)


def test_square_weights_as_they_should_be_are_read(tmp_path: Path) -> None:
    for seed in range(20):
        model = read(sparsify(tmp_path / f"layers.{seed}", square(seed))).model
        assert model.dictionary.W.equal(square(seed)["W_dec"])
    orthogonal = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1))).Q
    read(sparsify(tmp_path / "layers.99", square() | {"W_dec": orthogonal, "encoder.weight": orthogonal}))


@pytest.mark.parametrize(
    ("turned", "message"),
    [
        (("W_dec", "encoder.weight"), r"W_dec \(16, 16\) is transposed: its columns have one norm"),
        (("W_dec",), r"W_dec \(16, 16\) is transposed"),
        (("encoder.weight",), r"W_enc or W_dec \(16, 16\) is transposed: .* mean cosine"),
    ],
)
def test_square_weights_that_are_transposed_are_refused_without_data(
    turned: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    weights = {name: t.T if name in turned else t for name, t in square().items()}
    with pytest.raises(CorruptError, match=message):
        read(sparsify(tmp_path / "layers.1", weights))


def test_square_weights_that_do_not_show_it_are_refused_by_what_they_reconstruct(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    d = json.loads((tiny_model / "config.json").read_text())["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(d, d, generator=generator)
    # an exact reconstruction: every latent is active, x = (W x + 100) atoms - 100 Σ atoms
    weights = {
        "encoder.weight": torch.linalg.inv(atoms.double()).float().T,
        "encoder.bias": torch.full((d,), 100.0),
        "W_dec": atoms,
        "b_dec": -100 * atoms.sum(0),
    }
    right = {"k": d, "d_in": d, "num_latents": d, "transcode": True}
    out, arguments = tmp_path / "out", ["--model", tiny_model, "--dataset", corpus, "--context", 64]
    sites = ["--site", "resid_post.1", "--target-site", "resid_post.1"]

    def imported(name: str, turned: dict[str, Tensor]) -> dict:
        theirs = sparsify(tmp_path / name, turned, **right)
        return parse([str(a) for a in ("import", theirs, *arguments, *sites, "--out", out)]).run()

    turned = {name: t.T if t.ndim == 2 else t for name, t in weights.items()}
    turned["b_dec"] = -100 * turned["W_dec"].T.sum(0)
    with pytest.raises(CorruptError, match="reconstructs better transposed"):
        imported("layers.1", turned)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.1"]
    assert imported("layers.2", weights)["fvu_of_first_batch"] < 0.01
