"""Numba loops that scan tiles of pre-activations for the entries above a threshold.

A tile is the product x W^T of some tokens and some latents [n, columns], fp32, still in the cache; the loops add the
bias. Jitted functions that call each other all stand in this module, because numba's cache requires it (see jit.py).
"""

# numba passes the first argument of an intrinsic, typingctx, itself
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sae_kernels.jit import jit, prange

# latents compared at once; their results are the bits of one 64-bit mask
BLOCK = 64
_VECTOR = ir.VectorType(ir.FloatType(), BLOCK)


def _load(context, builder, kind, array, start):
    """BLOCK consecutive fp32 elements of a contiguous array, and their pointer."""
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [start]), ir.PointerType(_VECTOR))
    return builder.load(pointer, align=4), pointer


@intrinsic
def _exceeded(typingctx, row, bias, bars, start):
    """Mask whose bit i is not (row[start + i] + bias[start + i] <= bars[start + i]), so that NaN counts."""

    def generate(context, builder, signature, arguments):
        row, bias, bars, start = arguments
        x, _ = _load(context, builder, signature.args[0], row, start)
        b, _ = _load(context, builder, signature.args[1], bias, start)
        bar, _ = _load(context, builder, signature.args[2], bars, start)
        return builder.bitcast(builder.fcmp_unordered(">", builder.fadd(x, b), bar), ir.IntType(BLOCK))

    return types.uint64(row, bias, bars, types.intp), generate


@intrinsic
def _lowest_bit(typingctx, mask):
    """Index of the lowest set bit of a mask that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), generate


@intrinsic
def _ones(typingctx, mask):
    """Number of set bits."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.intp(types.uint64), generate


@jit(parallel=True, fastmath=False)
def count_above(product, bias, bars, counts):
    """counts[i] = the number of entries of row i of product + bias that exceed their latent's bar or are NaN."""
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, count = product[i], 0
        for start in range(0, whole, BLOCK):
            count += _ones(_exceeded(row, bias, bars, start))
        for j in range(whole, columns):
            count += not (row[j] + bias[j] <= bars[j])
        counts[i] = count


@jit(parallel=True, fastmath=False)
def take_above(product, bias, bars, first, places, values, indices):
    """Write the entries that `count_above` counts, those of row i from places[i] on; column j is latent first + j."""
    columns = product.shape[1]
    whole = columns - columns % BLOCK
    for i in prange(product.shape[0]):
        row, place = product[i], places[i]
        for start in range(0, whole, BLOCK):
            mask = _exceeded(row, bias, bars, start)
            while mask:
                j = start + _lowest_bit(mask)
                values[place] = row[j] + bias[j]
                indices[place] = first + j
                place += 1
                mask &= mask - np.uint64(1)
        for j in range(whole, columns):
            value = row[j] + bias[j]
            if not (value <= bars[j]):
                values[place] = value
                indices[place] = first + j
                place += 1


@jit(parallel=True)
def merge_rows(starts, counts, values, indices, offsets, filled, out_values, out_indices):
    """Append one part to CSR codes: counts[i] entries from starts[i] on, after the filled[i] that row i already has."""
    for i in prange(counts.shape[0]):
        source, target = starts[i], offsets[i] + filled[i]
        for j in range(counts[i]):
            out_values[target + j] = values[source + j]
            out_indices[target + j] = indices[source + j]
        filled[i] += counts[i]
