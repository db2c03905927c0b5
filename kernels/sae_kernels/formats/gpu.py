"""The formats of naive.py in Triton: rows are expanded as they are loaded, and rounded as they are stored.

A row of d numbers starts at `o_row` times its stride. `o_row` and `m_row`, which rows there are, have a shape that
broadcasts with the columns `o_d`: [1] with [BLOCK], or [ROWS, 1] with [1, BLOCK]; AXIS is that of the columns. `mask`
says which numbers there are. `place` counts the numbers of the matrix from the step's seed, uint32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sae_kernels.formats import naive

_TAIL = tl.constexpr(naive.TAIL)
_BINADES_M = tl.constexpr(naive.BINADES["m"])
_BINADES_V = tl.constexpr(naive.BINADES["v"])


@triton.jit
def _hash(b_h):
    b_h = (b_h ^ (b_h >> 16)) * 0x7FEB352D
    b_h = (b_h ^ (b_h >> 15)) * 0x846CA68B
    return b_h ^ (b_h >> 16)


@triton.jit
def load_moment(moment, o_row, o_d, d, m_row, mask, SECOND: tl.constexpr):
    """The first moment of some rows in fp32, or with SECOND the second."""
    if moment.dtype.element_ty == tl.uint8:
        BINADES: tl.constexpr = _BINADES_V if SECOND else _BINADES_M
        b_code = tl.load(moment + o_row * (d + _TAIL) + o_d, mask=mask, other=0).to(tl.int32)
        b_exponent = tl.load(moment + o_row * (d + _TAIL) + d, mask=m_row, other=0).to(tl.int32)
        b_size = b_code if SECOND else b_code & 0x7F
        b_bits = tl.maximum((b_size << 20) + ((b_exponent - BINADES) << 23), 0)
        b_value = tl.where(b_size == 0, 0, b_bits).to(tl.float32, bitcast=True)
        if SECOND:
            return b_value
        else:
            return tl.where(b_code > b_size, -b_value, b_value)
    else:
        return tl.load(moment + o_row * d + o_d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_codes(moment, b_value, o_row, o_d, d, b_drawn, m_row, mask, SECOND: tl.constexpr, AXIS: tl.constexpr):
    BINADES: tl.constexpr = _BINADES_V if SECOND else _BINADES_M
    # numbers beyond a row are zero: they were loaded so, and so is their gradient
    b_bits = b_value.to(tl.int32, bitcast=True)
    b_size = b_bits & 0x7FFFFFFF
    b_exponent = (tl.max(b_size, AXIS, keep_dims=True) + 0xFFFFF) >> 23
    b_code = (b_size - ((b_exponent - BINADES) << 23) + (b_drawn.to(tl.int32) << 4)) >> 20
    if SECOND:
        b_code = tl.minimum(tl.maximum(b_code, 1), 255)
    else:
        b_code = tl.minimum(tl.maximum(b_code, 0), 127) + ((b_bits >> 31) & 1) * 128
    b_code = tl.where(b_size == 0, 0, b_code)
    tl.store(moment + o_row * (d + _TAIL) + o_d, b_code.to(tl.uint8), mask=mask)
    tl.store(moment + o_row * (d + _TAIL) + d, b_exponent.to(tl.uint8), mask=m_row)


@triton.jit
def store_moments(m, v, b_m, b_v, o_row, o_d, d, place, m_row, mask, AXIS: tl.constexpr):
    """Store both moments of some rows."""
    b_h = _hash(place)
    if m.dtype.element_ty == tl.bfloat16:
        b_m = (b_m.to(tl.uint32, bitcast=True) + (b_h & 0xFFFF)) >> 16
        b_v = (b_v.to(tl.uint32, bitcast=True) + (b_h >> 16)) >> 16
        tl.store(m + o_row * d + o_d, b_m.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
        tl.store(v + o_row * d + o_d, b_v.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    elif m.dtype.element_ty == tl.uint8:
        _store_codes(m, b_m, o_row, o_d, d, b_h & 0xFFFF, m_row, mask, False, AXIS)
        _store_codes(v, b_v, o_row, o_d, d, b_h >> 16, m_row, mask, True, AXIS)
    else:
        tl.store(m + o_row * d + o_d, b_m, mask=mask)
        tl.store(v + o_row * d + o_d, b_v, mask=mask)


@triton.jit
def store_weight(p_weight, b_weight, place, mask):
    """Store weights at their pointers; returns them in fp32 as they were rounded."""
    if p_weight.dtype.element_ty == tl.bfloat16:
        b_bits = (b_weight.to(tl.uint32, bitcast=True) + (_hash(_hash(place)) & 0xFFFF)) >> 16
        tl.store(p_weight, b_bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
        return (b_bits << 16).to(tl.float32, bitcast=True)
    else:
        tl.store(p_weight, b_weight, mask=mask)
        return b_weight
