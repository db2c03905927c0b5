"""Every op at common sizes of models: the kernels it launches, and the bytes that it must move.

A case calls the op's own GPU implementation on tensors of the meta device, so its launches are those of a GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sae_kernels.adam_step.gpu import adam_step
from sae_kernels.adam_step.naive import Adam
from sae_kernels.codes import SparseCodes
from sae_kernels.formats.naive import zero_moment
from sae_kernels.fused_step.gpu import forward, update
from sae_kernels.fused_step.naive import Options
from sae_kernels.fused_step.op import Copies, Parameters, RowGradients, StepForward, copies_of
from sae_kernels.gpu_product import operands
from sae_kernels.latent_sweep.gpu import latent_sweep
from sae_kernels.launch import Launch, device_of, recording
from sae_kernels.sparse_decode.gpu import sparse_decode
from sae_kernels.threshold_encode.gpu import compact, survivors
from sae_kernels.topk_encode.gpu import topk_encode
from sae_kernels.tuning import Device, encode_config, threshold_config

TOKENS = 8192
WIDTHS = {16_384: 32, 131_072: 64}
"""F -> k."""
MODELS = {"GPT-2 small": 768, "SmolLM2": 576, "Gemma-2-2B": 2304, "Llama-3-8B": 4096}
"""d of the models."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size."""

    op: str
    d: int
    F: int
    k: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes an element."""
        return self.dtype.itemsize

    @property
    def entries(self) -> int:
        """N k."""
        return TOKENS * self.k

    def record(self, device: Device) -> list[Launch]:
        """The launches of the op on `device`."""
        with recording(device) as recorder:
            OPS[self.op].run(self)
        return recorder.launches

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def codes(self, csr: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        shape = (self.entries,) if csr else (TOKENS, self.k)
        offsets = self.tensor(TOKENS + 1, dtype=torch.int64) if csr else None
        return self.tensor(*shape), self.tensor(*shape, dtype=torch.int64), offsets


@dataclass(frozen=True, kw_only=True)
class Op:
    """How a case of an op is run, and the bytes it moves."""

    run: Callable[[Case], object]
    """Calls the op."""
    floor: Callable[[Case], int]
    """Bytes that any exact implementation of the op moves."""
    torch_bytes: Callable[[Case], int] = lambda case: 0
    """Bytes that the torch operations between the launches move."""
    torch_operations: Callable[[Case], int] = lambda case: 0
    """Operations of the vendor's products."""


def _topk(vendor: bool, c: Case) -> None:
    x = c.tensor(TOKENS, c.d)
    config = replace(encode_config(TOKENS, c.F, c.d, c.k, c.dtype, device_of(x)), vendor=vendor)
    topk_encode(x, c.tensor(c.F, c.d), c.tensor(c.F), c.k, c.tensor(c.d), config=config)


def _threshold(vendor: bool, c: Case) -> None:
    x, W_enc = operands(c.tensor(TOKENS, c.d), c.tensor(c.F, c.d), c.tensor(c.d))
    b_enc, bars = c.tensor(c.F), c.tensor(c.F, dtype=torch.float32)
    config = replace(threshold_config(TOKENS, c.F, c.d, c.dtype, device_of(x)), vendor=vendor)
    pairs, counts = survivors(x, W_enc, b_enc, bars, config)
    values, indices, offsets = c.codes(csr=True)
    assert offsets is not None
    compact(x, W_enc, b_enc, bars, pairs, counts, offsets, values, indices, config)


def _decode(csr: bool) -> Op:
    return Op(
        run=lambda c: sparse_decode(*c.codes(csr), c.tensor(c.F, c.d), c.tensor(c.d)),
        floor=lambda c: _rows(1, c) + c.entries * (c.size + _ENTRY) + TOKENS * c.d * c.size,
    )


def _sweep(parts: str, c: Case) -> None:
    values, indices, _ = c.codes()
    g = c.tensor(TOKENS, c.d) if "dec" in parts else None
    W = c.tensor(c.F, c.d) if "dec" in parts else None
    x = c.tensor(TOKENS, c.d) if "enc" in parts else None
    latent_sweep(SparseCodes(values, indices, c.F), g, W, x, None if "dec" in parts else values)


def _adam(unit_rows: bool, c: Case) -> None:
    param, m, v = (c.tensor(c.F, c.d, dtype=torch.float32) for _ in range(3))
    adam = Adam(step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    adam_step(param, c.tensor(c.F, c.d), m, v, adam, c.tensor(dtype=torch.float32), unit_rows)


def _parameters(c: Case, weights: torch.dtype = torch.float32) -> Parameters:
    return Parameters(
        c.tensor(c.F, c.d, dtype=weights),
        c.tensor(c.F, dtype=torch.float32),
        c.tensor(c.F, c.d, dtype=weights),
        c.tensor(c.d, dtype=torch.float32),
    )


def _moments(params: Parameters, dtype: torch.dtype) -> Parameters:
    return Parameters(*(zero_moment(p, dtype if p.ndim == 2 else torch.float32) for p in params))


def _copies(c: Case, params: Parameters) -> Copies:
    return copies_of(params, c.dtype)


GROUPS = 6
"""Nested prefixes."""


def _forward(c: Case, *, nested: bool = False, dots: bool = False, weights: torch.dtype = torch.float32) -> StepForward:
    """The forward pass of a step, recorded, and what it returns."""
    params, (values, indices, offsets) = _parameters(c, weights), c.codes(csr=nested)
    codes = SparseCodes(values, indices, c.F, offsets)
    starts = c.tensor(TOKENS * GROUPS + 1, dtype=torch.int64) if nested else None
    copies = _copies(c, params)
    results = forward(params, codes, c.tensor(TOKENS, c.d, dtype=torch.float32), starts, dots, None, copies)
    residual, error, products, spread = results
    return StepForward(codes, residual, error, c.tensor(TOKENS, c.d), products, True, spread, starts, copies)


def _update(
    c: Case, *, nested: bool = False, weights: torch.dtype = torch.float32, moments: torch.dtype = torch.float32
) -> None:
    """The update of a step whose gradient is not clipped, with extra rows where the prefixes are nested."""
    with recording(device_of(c.tensor(0))):
        step = _forward(c, nested=nested, dots=nested, weights=weights)
    params = _parameters(c, weights)
    m, v = (_moments(params, moments) for _ in range(2))
    rows = c.tensor(1024, dtype=torch.int64)
    extra = RowGradients(rows, *(c.tensor(1024, *shape, dtype=torch.float32) for shape in ((c.d,), (), (c.d,))))
    adam = Adam(step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    more = c.tensor(dtype=torch.float64)
    update(params, m, v, step, Options(adam, 1.0, extra if nested else None, None, more, None))


def _product(c: Case) -> int:
    return (TOKENS + c.F) * c.d * c.size + c.F * c.size


def _centring(c: Case) -> int:
    return 2 * TOKENS * c.d * c.size


def _sort(c: Case) -> int:
    # int64 indices to int32 keys; a radix sort reads and writes key and place, 12 bytes, four times
    return c.entries * (8 + 4 + 4 * 2 * 12)


def _rows(tensors: int, c: Case) -> int:
    return tensors * c.entries * c.d * c.size


def _state(c: Case, weights: int = 4, moments: int = 4) -> int:
    copies = 2 * c.size if c.size < weights else 0
    return c.F * c.d * (4 * weights + 8 * moments + copies) + _rows(2, c) + c.entries * (c.size + _ENTRY + 4)


_ENTRY = 8  # bytes of an index
_KEPT = 2 * 5 * TOKENS * 4 / 128  # bytes a latent for top-k candidates: four of 128, five bytes, written and read


def _whole_product(c: Case) -> int:
    """The vendor's product: what it reads, and what it writes, which the fused one does not."""
    return _product(c) + 4 * TOKENS * c.F


OPS = {
    "topk_encode": Op(
        run=partial(_topk, False),
        floor=lambda c: _product(c) + int(_KEPT * c.F) + c.entries * (c.size + _ENTRY),
        torch_bytes=_centring,
    ),
    "threshold_encode": Op(
        run=partial(_threshold, False),
        floor=lambda c: _product(c) + 4 * c.F + c.entries * (c.size + _ENTRY) + 8 * TOKENS,
        torch_bytes=lambda c: _centring(c) + 2 * TOKENS * math.ceil(c.F / 64),
    ),
    # the second encoder also writes and reads the product, though a chunk may stay in the cache
    "topk_encode vendor": Op(
        run=partial(_topk, True),
        floor=lambda c: _product(c) + 8 * TOKENS * c.F + int(_KEPT * c.F) + c.entries * (c.size + _ENTRY),
        torch_bytes=lambda c: _centring(c) + _whole_product(c),
        torch_operations=lambda c: 2 * TOKENS * c.F * c.d,
    ),
    "threshold_encode vendor": Op(
        run=partial(_threshold, True),
        floor=lambda c: _product(c) + 8 * TOKENS * c.F + 4 * c.F + c.entries * (c.size + _ENTRY) + 8 * TOKENS,
        torch_bytes=lambda c: _centring(c) + _whole_product(c) + 2 * TOKENS * math.ceil(c.F / 64),
        torch_operations=lambda c: 2 * TOKENS * c.F * c.d,
    ),
    "sparse_decode": _decode(csr=False),
    "sparse_decode csr": _decode(csr=True),
    "latent_sweep": Op(
        run=partial(_sweep, "dec enc"),
        floor=lambda c: _rows(2, c) + c.F * c.d * (c.size + 8) + c.entries * (c.size + _ENTRY + 4),
        torch_bytes=_sort,
    ),
    "latent_sweep dec": Op(
        run=partial(_sweep, "dec"),
        floor=lambda c: _rows(1, c) + c.F * c.d * (c.size + 4) + c.entries * (c.size + _ENTRY + 4),
        torch_bytes=_sort,
    ),
    "latent_sweep enc": Op(
        run=partial(_sweep, "enc"),
        floor=lambda c: _rows(1, c) + c.F * c.d * 4 + c.entries * (2 * c.size + _ENTRY),
        torch_bytes=_sort,
    ),
    "fused_forward": Op(
        run=_forward,
        floor=lambda c: _rows(1, c) + c.entries * (c.size + _ENTRY) + TOKENS * c.d * (4 + c.size),
    ),
    "fused_forward nested": Op(
        run=partial(_forward, nested=True, dots=True),
        # every group's row is written, read and written again; the atoms are read twice
        floor=lambda c: (
            _rows(2, c) + c.entries * (c.size + 2 * _ENTRY + 4) + TOKENS * c.d * (4 + (1 + 3 * GROUPS) * c.size)
        ),
    ),
    # Adam's state is read and written, the copies are written, and two rows an entry are read
    "fused_update": Op(run=_update, floor=_state, torch_bytes=_sort),
    "fused_update, moments in bf16": Op(
        run=partial(_update, moments=torch.bfloat16), floor=partial(_state, moments=2), torch_bytes=_sort
    ),
    "fused_update, moments in 8 bits": Op(
        run=partial(_update, moments=torch.uint8), floor=partial(_state, moments=1), torch_bytes=_sort
    ),
    "fused_update, weights in bf16, moments in 8 bits": Op(
        run=partial(_update, weights=torch.bfloat16, moments=torch.uint8),
        floor=partial(_state, weights=2, moments=1),
        torch_bytes=_sort,
    ),
    "fused_update nested": Op(
        run=partial(_update, nested=True), floor=lambda c: _state(c) + 1024 * c.d * 8, torch_bytes=_sort
    ),
    "adam_step": Op(run=partial(_adam, False), floor=lambda c: c.F * c.d * (24 + c.size)),
    "adam_step unit_rows": Op(run=partial(_adam, True), floor=lambda c: c.F * c.d * (24 + c.size)),
}


def all_cases(dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)) -> list[Case]:
    """Every op at every model's d and both widths."""
    return [
        Case(op=op, d=d, F=F, k=k, dtype=dtype)
        for op, dtype, d, (F, k) in itertools.product(OPS, dtypes, MODELS.values(), WIDTHS.items())
    ]
