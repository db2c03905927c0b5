"""The mesh of a training job: D data ranks x L latent ranks, and what they exchange in a step.

    mesh = Mesh(Shape(data=4, latent=2), device)      # 8 processes; rank = data rank * L + latent rank
    mesh.total(partial, "latent")                     # a sum over the ranks that hold the other latents

A data rank trains on its slice of every batch; a latent rank holds F/L rows of encoder, dictionary and moments. With N
rows a batch, width d and k latents a row, a rank sends and receives in one step (float32, times about 2 in a ring):

    data axis      gradients              2 F d / L         or rows, residuals and codes   N (2 d + 2 k)
    latent axis    candidates  N k / D,   reconstructions  N d / D

The gradients are summed as they are, because their sum is the same whatever the code and the loss; the exchange of rows
moves fewer bytes where 2 F > N L (with F = 16,384, d = 2,304, N = 4,096: 302 MB against 76 MB), and leaves each rank
with the update of F / (D L) rows.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sae.training.distributed.shape import Shape

Axis = Literal["data", "latent", "all"]


class Mesh:
    """This process's place on the mesh, and the exchanges of its row and column.

    All ranks of an axis must call an exchange together. `bytes` and `seconds` count what they cost, by name.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.devices: DeviceMesh = init_device_mesh(device.type, tuple(shape), mesh_dim_names=("data", "latent"))
        self.i_data, self.i_latent = self.devices.get_local_rank("data"), self.devices.get_local_rank("latent")
        self.bytes: Counter[str] = Counter()
        """Bytes that this rank gave to exchanges."""
        self.seconds: Counter[str] = Counter()
        """Time inside exchanges; on a GPU the host's alone."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Mesh:
        return self  # a copy of a model is on the same mesh

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.shape.data * self.shape.latent

    def size(self, axis: Axis) -> int:
        """Number of ranks along an axis."""
        return self.world if axis == "all" else getattr(self.shape, axis)

    def total(self, values: Tensor, axis: Axis) -> Tensor:
        """The sum over an axis, the same bits in each of its ranks; `values` itself along an axis of one rank."""
        return self._reduce(values, axis, distributed.ReduceOp.SUM)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of as many values in every rank, 0-dim."""
        return self.total(values.mean(), "all") / self.world

    def largest(self, values: Tensor, axis: Axis) -> Tensor:
        """The largest over an axis, element by element."""
        return self._reduce(values, axis, distributed.ReduceOp.MAX)

    def gather(self, values: Tensor, axis: Axis) -> Tensor:
        """`values` of all ranks of an axis, of one shape, stacked in their order [ranks, ...]."""
        if self.size(axis) == 1:
            return values.unsqueeze(0)
        values = values.contiguous()
        parts = values.new_empty(self.size(axis), *values.shape)
        with self._timed("gather", values):
            rooms = list(_bytes(parts.view(self.size(axis), -1)).unbind(0))
            distributed.all_gather(rooms, _bytes(values.view(-1)), group=self._group(axis))
        return parts

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Give `sent[r]` of these rows [n, ...], in order, to rank r of all; the rows received, by rank.

        Args:
            received: rows that come from each rank.
        """
        rows = rows.contiguous()
        result = rows.new_empty(sum(received), *rows.shape[1:])
        with self._timed("exchange", rows):
            distributed.all_to_all_single(_bytes(result), _bytes(rows), received, sent)
        return result

    def sharded(self, rows: Tensor) -> DTensor:
        """This rank's rows [F/L, ...] as a part of the whole [F, ...]; shares their memory."""
        return DTensor.from_local(rows, self.devices, [Replicate(), Shard(0)], run_check=False)

    def _reduce(self, values: Tensor, axis: Axis, op: Any) -> Tensor:
        if self.size(axis) == 1:
            return values
        result = values.detach().clone(memory_format=torch.contiguous_format)
        with self._timed("reduce", result):
            distributed.all_reduce(result, op, group=self._group(axis))
        return result

    def _group(self, axis: Axis) -> Any:
        return None if axis == "all" else self.devices.get_group(axis)

    def _timed(self, name: str, values: Tensor) -> _Timer:
        self.bytes[name] += values.numel() * values.element_size()
        return _Timer(self.seconds, name)


class _Timer:
    """Adds the time of a block to a counter."""

    def __init__(self, seconds: Counter[str], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] += time.perf_counter() - self.begun  # pyright: ignore[reportArgumentType]


def _bytes(values: Tensor) -> Tensor:
    """The same memory as bytes, [n] or [n, ...]: gloo knows few dtypes."""
    return values.view(torch.uint8)


class SumOverLatents(torch.autograd.Function):
    """Σ over latent ranks of partial results; its gradient passes as it is, as what follows is the same in every rank.

    (Shoeybi et al. 2019, section 3: the operator g.)
    """

    @staticmethod
    def forward(ctx: Any, partial: Tensor, mesh: Mesh) -> Tensor:
        del ctx
        # never the input itself, which autograd would take for a change in place
        return mesh.total(partial, "latent") if mesh.shape.latent > 1 else partial.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None
