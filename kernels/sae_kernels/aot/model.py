"""Bytes and operations of a launch, from its own arguments: the roofline model of every kernel.

A gathered row counts every time it is read, as if nothing stayed in the cache; so it does in the floors of cases.py. A
single element of a row costs a sector of 32 bytes. The codes are assumed to be spread evenly over the latents, so that
no latent is divided into pieces and no bucket of an encode overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import triton

from sae_kernels.launch import Launch
from sae_kernels.tuning import Device, fallback_probability

SECTOR = 32


class Work(NamedTuple):
    """The work of a launch."""

    bytes: float
    """Moved to and from memory."""
    operations: float
    """Operations of matrix products; a multiply-add is two."""
    exact_fp32: bool = False
    """Whether they are in exact fp32."""

    def seconds(self, device: Device) -> float:
        """The longer of the two at the device's rates."""
        rate = device.flops_fp32 if self.exact_fp32 else device.flops
        return max(self.bytes / device.bandwidth, self.operations / rate)


def work(launch: Launch, entries: int) -> Work:
    """Bytes and operations of a launch on codes of `entries` entries.

    Raises:
        KeyError: a kernel without a model.
    """
    return _MODELS[launch.kernel.__name__](launch, entries)


def _size(launch: Launch, name: str) -> int:
    return launch.arguments[name].element_size()


def _nbytes(launch: Launch, *names: str) -> int:
    return sum(launch.arguments[name].numel() * _size(launch, name) for name in names)


def _product(launch: Launch, extra: float) -> Work:
    a, c = launch.arguments, launch.constants
    groups = triton.cdiv(triton.cdiv(a["N"], c["BLOCK_N"]), a["group"])
    # W_enc is read once for each group of row tiles, whose x stays in the cache
    moved = (a["N"] + a["F"] * groups) * a["d"] * _size(launch, "x") + _nbytes(launch, "b_enc")
    exact_fp32 = c["PRECISION"] == "ieee" and _size(launch, "x") == 4
    return Work(moved + extra, 2 * a["N"] * a["F"] * a["d"], exact_fp32)


def _chunk(launch: Launch, *names: str) -> Work:
    """A chunk of the vendor's product is read; of what is kept of all latents, the chunk's part is written."""
    a = launch.arguments
    return Work(_nbytes(launch, "pre") + _nbytes(launch, *names) * a["columns"] / a["F"], 0)


def _repair(launch: Launch, entries: int) -> Work:
    a, c = launch.arguments, launch.constants
    rows = a["keys"].shape[0] * fallback_probability(a["F"], a["k"], c["BUCKET"], c["KEPT"])
    return Work(_nbytes(launch, "keys", "positions") + rows * c["BUCKET"] * a["d"] * _size(launch, "x"), 0)


def _rows(launch: Launch, entries: int, *names: str) -> Work:
    """The listed atoms, and the whole of some arguments."""
    return Work(entries * launch.arguments["d"] * _size(launch, "W_dec") + _nbytes(launch, *names), 0)


def _order(launch: Launch, entries: int) -> Work:
    places = entries * SECTOR if launch.constants["KEPT"] < launch.constants["BUCKET"] else 0
    return Work(_nbytes(launch, "keys", "positions", "values", "indices") + places, 0)


def _select(launch: Launch, entries: int) -> Work:
    read = _nbytes(launch, "keys") * (1 if launch.constants["FIRST"] else 2)
    return Work(read + _nbytes(launch, "out_keys", "out_positions"), 0)


def _sweep(launch: Launch, entries: int) -> Work:
    a, c = launch.arguments, launch.constants
    moved = _nbytes(launch, "order", "bounds") + entries * SECTOR
    if c["HAS_G"]:
        moved += entries * a["d"] * _size(launch, "grad_out") + _nbytes(launch, "grad_W_dec")
    if c["HAS_W"]:
        # only listed atoms are read, a part of them if F is far above the number of entries
        moved += min(entries, a["W_dec"].shape[0]) * a["d"] * _size(launch, "W_dec")
    if c["HAS_W"] or c["HAS_X"]:
        moved += entries * SECTOR
    if c["HAS_X"]:
        moved += entries * a["d"] * _size(launch, "x") + _nbytes(launch, "grad_W_enc", "grad_b_enc")
    return Work(moved, 0)


def _compare_nested(launch: Launch, entries: int) -> Work:
    rows = 3 * _nbytes(launch, "spread") + entries * (8 if launch.constants["DOTS"] else 0)
    again = entries * launch.arguments["d"] * _size(launch, "W_dec") if launch.constants["DOTS"] else 0
    names = ("values", "indices", "starts", "target", "b_dec", "residual", "squared_error", "dots")
    return Work(_rows(launch, entries, *names).bytes + rows + again, 0)


def _step(launch: Launch, entries: int) -> Work:
    a, c = launch.arguments, launch.constants
    if not c["WRITE"]:
        # the bound suffices: every program leaves at once
        return Work(_nbytes(launch, "decision"), 0)
    weights = ("W_enc", "b_enc", "W_dec", "m_enc", "m_bias", "m_dec", "v_enc", "v_bias", "v_dec")
    moved = 2 * _nbytes(launch, *weights) + (_nbytes(launch, "copy_enc", "copy_dec") if c["COPIES"] else 0)
    moved += entries * (a["d_out"] * _size(launch, "spread") + a["d_in"] * _size(launch, "centred"))
    moved += _nbytes(launch, "bounds", "tokens", "values") + (_nbytes(launch, "slopes") if c["HAS_SLOPES"] else 0)
    moved += _nbytes(launch, "place", "extra_enc", "extra_bias", "extra_dec") if c["HAS_EXTRA"] else 0
    return Work(moved + 2 * _nbytes(launch, "sums"), 0)


_MODELS: dict[str, Callable[[Launch, int], Work]] = {
    "_candidates": lambda launch, entries: _product(launch, _nbytes(launch, "keys", "places")),
    "_chunk_candidates": lambda launch, entries: _chunk(launch, "keys", "places"),
    "_chunk_survivors": lambda launch, entries: _chunk(launch, "counts"),
    "_survivors": lambda launch, entries: _product(launch, _nbytes(launch, "counts", "bars") + entries * SECTOR),
    "_compact": lambda launch, entries: Work(
        _nbytes(launch, "counts", "offsets", "out_values", "out_indices") + entries * SECTOR, 0
    ),
    "_select": _select,
    "_repair": _repair,
    "_order": _order,
    "_decode": lambda launch, entries: _rows(launch, entries, "values", "indices", "out", "b_dec"),
    "_compare": lambda launch, entries: _rows(
        launch, entries, "values", "indices", "target", "b_dec", "residual", "squared_error"
    ),
    "_compare_nested": _compare_nested,
    "_dot_squares": lambda launch, entries: Work(_nbytes(launch, "squares"), 0),
    "_step": _step,
    "_step_pieces": lambda launch, entries: Work(_nbytes(launch, "owner"), 0),
    "_sweep": _sweep,
    "_sweep_pieces": lambda launch, entries: Work(_nbytes(launch, "owner"), 0),
    "_merge": lambda launch, entries: Work(_nbytes(launch, "owner"), 0),
    "_adam": lambda launch, entries: Work(2 * _nbytes(launch, "param", "m", "v") + _nbytes(launch, "grad"), 0),
}
