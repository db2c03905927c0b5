"""int8 stores: half of float16's bytes, outliers exact, and errors within what rounding allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae.config import ConfigError, HarvestConfig, TrainConfig
from sae.data.packing import BEGINNING
from sae.harvest.int8 import dequantise, outliers_a_row, quantise, row_bytes
from sae.harvest.precision import rounding_cost
from sae.harvest.rows import PLACE_BYTES, Rows
from sae.harvest.store import DiskStore
from sae.training.plan import make_plan


def activations(rows: int, width: int) -> torch.Tensor:
    """Heavy-tailed rows of very different norms, with massive columns and massive single entries."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=draw) * torch.rand(rows, 1, generator=draw).mul(6).exp()
    x[:, width // 3] += 900.0
    x[::7, width // 2] = -3e4
    x[5] = 0.0
    return x.half().float()


@pytest.mark.parametrize("width", [1, 3, 72, 576, 1000])
def test_errors_are_at_most_half_a_step_and_outliers_are_exact(width: int) -> None:
    x = activations(200, width)
    quantised = quantise(x)
    again = dequantise(quantised)
    assert ((again - x).abs() <= quantised.scale.unsqueeze(1) * 0.5001).all()
    largest = x.abs().topk(outliers_a_row(width), dim=1).indices
    assert again.gather(1, largest).equal(x.gather(1, largest))
    assert again[5].equal(torch.zeros(width))


def test_rounding_costs_less_than_two_thousandths_of_the_variance_of_each_row() -> None:
    x = torch.randn(4_000, 576, generator=torch.Generator().manual_seed(1))
    x[:, 17] += 500.0  # a column that would spoil a scale a row
    assert rounding_cost(x, torch.float16) < 1e-3
    cost = (dequantise(quantise(x)) - x).double().square().sum() / (x - x.mean(0)).double().square().sum()
    assert cost < 2e-4
    wide = x.abs().amax(1, keepdim=True) / 127
    plain = ((x / wide).round() * wide - x).double().square().sum() / (x - x.mean(0)).double().square().sum()
    assert plain > 0.1, "without exact outliers the column decides every scale"


def test_a_store_takes_at_most_56_hundredths_of_float16(tmp_path: Path) -> None:
    assert (row_bytes(576) + PLACE_BYTES) / (2 * 576 + PLACE_BYTES) <= 0.56
    x = activations(20_000, 576)
    types = (torch.int32, torch.int64, torch.int32, torch.int32, torch.int8)
    columns = [torch.zeros(len(x), dtype=dtype) for dtype in types]
    sizes = {}
    for precision in ("float16", "int8"):
        store = DiskStore(tmp_path / precision, {"sites": {"s.0": 576}, "precision": precision})
        store.append(Rows({"s.0": x.to(store.dtype)}, *columns), BEGINNING)
        sizes[precision] = sum(path.stat().st_size for path in (tmp_path / precision).rglob("*") if path.is_file())
    assert sizes["int8"] <= 0.56 * sizes["float16"]
    store = DiskStore(tmp_path / "int8")
    whole = dequantise(quantise(x))
    for rows in (range(20_000), range(100, 200), torch.tensor([19_999, 3, 3, 700])):
        wanted = rows if isinstance(rows, torch.Tensor) else torch.arange(rows.start, rows.stop)
        assert store.read(rows, ["s.0"]).activations["s.0"].equal(whole[wanted])
    assert store.parts[0].activations["s.0"].equal(whole)


def test_int8_is_refused_where_there_is_no_store(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    harvest = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, store_precision="int8")
    with pytest.raises(ConfigError, match="--store-precision int8: a precision of stores, and no --store is given"):
        make_plan(TrainConfig(harvest=harvest, tokens=4_096, out=tmp_path / "run"))
