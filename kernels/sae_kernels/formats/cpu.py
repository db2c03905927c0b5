"""The formats of naive.py on the CPU: rows of them are expanded to fp32, and rounded after a step.

array = expand(stored[rows], "m", "m_enc")      # fp32 [rows, d]; the memory itself where it is fp32
...                                             # a step in place on the array
store(array, stored[rows], "m", place)          # nothing to do where it is fp32
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_kernels.buffers import scratch
from sae_kernels.formats.naive import BINADES, TAIL, Kind
from sae_kernels.jit import jit, prange, sync_threads

_TURNS = {"m": 0, "v": 1, "w": 2}


def expand(stored: Tensor, kind: Kind, name: str) -> np.ndarray:
    """The numbers of some rows as an fp32 array: `stored` itself, or scratch memory of this name."""
    stored = stored.detach()
    if stored.dtype == torch.float32:
        return stored.numpy()
    width = stored.shape[1] - (TAIL if stored.dtype == torch.uint8 else 0)
    out = scratch().get(f"formats.{name}", (stored.shape[0], width))
    if stored.dtype == torch.bfloat16:
        out.copy_(stored)
    else:
        sync_threads(out.numel())
        _expand_codes(stored.numpy(), out.numpy().view(np.uint32), BINADES[kind], kind == "m")
    return out.numpy()


def store(array: np.ndarray, stored: Tensor, kind: Kind, place: np.uint32) -> None:
    """Round fp32 rows to the format of `stored` and write them there; `place` is that of the first number."""
    stored = stored.detach()
    if stored.dtype == torch.float32:
        return
    sync_threads(array.size)
    bits, turn = array.view(np.uint32), _TURNS[kind]
    if stored.dtype == torch.bfloat16:
        _round_short(bits, stored.view(torch.int16).numpy().view(np.uint16), place, turn)
    else:
        _round_codes(bits, stored.numpy(), place, turn, BINADES[kind], kind == "m")


@jit()
def _hash(h):
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return h ^ (h >> np.uint32(16))


@jit()
def _draw(place, turn):
    """The 16 random bits of a place for one of the three kinds."""
    h = _hash(place)
    if turn == 2:
        h = _hash(h)
    return h >> np.uint32(16) if turn == 1 else h & np.uint32(0xFFFF)


@jit(parallel=True)
def _round_short(bits, short, place, turn):
    """fp32 bits [rows, d] to those of bf16, uint16."""
    width = bits.shape[1]
    for f in prange(bits.shape[0]):
        row, out, first = bits[f], short[f], np.uint32(place + np.uint32(f * width))
        for j in range(width):
            drawn = _draw(np.uint32(first + np.uint32(j)), turn)
            out[j] = np.uint16(np.uint32(row[j] + drawn) >> np.uint32(16))


@jit(parallel=True)
def _round_codes(bits, codes, place, turn, binades, signed):
    """fp32 bits [rows, d] to 8-bit codes and the exponents of rows, uint8 [rows, d + TAIL]."""
    width = bits.shape[1]
    for f in prange(bits.shape[0]):
        row, out, first = bits[f], codes[f], np.uint32(place + np.uint32(f * width))
        largest = np.uint32(0)
        for j in range(width):
            largest = max(largest, row[j] & np.uint32(0x7FFFFFFF))
        exponent = np.int32((largest + np.uint32(0xFFFFF)) >> np.uint32(23))
        base = np.int64(exponent - binades) << 23
        for j in range(width):
            size = np.int64(row[j] & np.uint32(0x7FFFFFFF))
            drawn = np.int64(_draw(np.uint32(first + np.uint32(j)), turn))
            code = (size - base + (drawn << 4)) >> 20
            if signed:
                code = min(max(code, 0), 127) + (np.int64(row[j] >> np.uint32(31)) << 7)
            else:
                code = min(max(code, 1), 255)
            out[j] = np.uint8(code if size > 0 else 0)
        out[width] = np.uint8(exponent)


@jit(parallel=True)
def _expand_codes(codes, bits, binades, signed):
    """The reverse."""
    width = bits.shape[1]
    for f in prange(codes.shape[0]):
        row, out = codes[f], bits[f]
        base = (np.int64(row[width]) - binades) << 23
        for j in range(width):
            code = np.int64(row[j])
            size = code & 127 if signed else code
            value = max((size << 20) + base, 0) if size > 0 else 0
            out[j] = np.uint32(value | ((code >> 7) << 31 if signed else 0))
