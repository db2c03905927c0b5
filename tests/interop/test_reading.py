"""SAEs of other tools are read through the worked format of CONTRIBUTING; what is not an SAE is refused by name."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from sae.base.files import CorruptError, publish_json
from sae.config import ConfigError
from sae.interop import READERS, Origin, read
from sae.models.saved import save_weights

ROOT = Path(__file__).parents[2]
FILE = "sae/interop/plainsae.py"


@pytest.fixture
def plainsae(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example, imported as written, and its line in the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(rf"`{FILE}`:\n\n```python\n(.*?)```", text, re.DOTALL)
    name, module_name = re.findall(r'with the line `"(\w+)": "(sae\.interop\.\w+)",` in `READERS`', text)[0]
    module = types.ModuleType(module_name)
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module_name, module)
    monkeypatch.setitem(READERS, name, module_name)


def arrays(d: int = 5, F: int = 12) -> dict[str, np.ndarray]:
    """A file of the invented tool: weights of a plain relu autoencoder, and the site they belong to."""
    draw = np.random.default_rng(0)
    shapes = {"W_enc": (d, F), "b_enc": (F,), "W_dec": (F, d), "b_dec": (d,)}
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return weights | {"site": np.array("blocks.3.hook_resid_post")}


@pytest.mark.usefixtures("plainsae")
def test_an_autoencoder_of_another_tool_gives_that_tool_s_numbers(tmp_path: Path) -> None:
    weights = arrays()
    np.savez(tmp_path / "theirs.npz", **weights)
    imported = read(tmp_path / "theirs.npz")
    assert imported.origin == Origin("plainsae", sites=("blocks.3.hook_resid_post",))
    x = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    f = np.maximum(x @ weights["W_enc"] + weights["b_enc"], 0)
    codes, reconstruction = imported.model(torch.from_numpy(x))
    np.testing.assert_allclose(codes.to_dense().detach().numpy(), f, rtol=1e-5, atol=1e-5)
    expected = f @ weights["W_dec"] + weights["b_dec"]
    np.testing.assert_allclose(reconstruction.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("plainsae")
def test_it_is_saved_as_ours_and_loads(tmp_path: Path) -> None:
    np.savez(tmp_path / "theirs.npz", **arrays())
    model, origin = read(tmp_path / "theirs.npz", format="plainsae")
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    publish_json(
        tmp_path / "config.json", {"autoencoder": save_weights(tmp_path, model, x), "imported": origin._asdict()}
    )
    assert sae.load(tmp_path).encode(x).to_dense().equal(model.encode(x).to_dense())


@pytest.mark.usefixtures("plainsae")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": np.zeros((12, 5), np.float32)}, r"W_enc has the shape \(5, 12\), expected \(12, 5\)"),
        ({"b_dec": np.full(5, np.nan, np.float32)}, "b_dec has numbers that are not finite"),
    ],
)
def test_wrong_weights_are_refused_with_the_tensor_s_name(changes: dict, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "theirs.npz", **(arrays() | changes))
    with pytest.raises(CorruptError, match=message):
        read(tmp_path / "theirs.npz")


@pytest.mark.usefixtures("plainsae")
def test_refusals_name_the_known_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ConfigError, match=r"notes.txt: is in no format that can be read.*plainsae"):
        read(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"format 'gguf' is unknown; known: .*plainsae"):
        read(tmp_path / "notes.txt", format="gguf")
    with pytest.raises(ConfigError, match="no such file or folder"):
        read(tmp_path / "missing.npz")
