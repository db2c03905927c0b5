"""Numba kernels of the fused step: the token-major forward pass, and the sweep over latents that updates the weights.

Jitted functions that call each other all stand in this module, because numba's cache requires it (see jit.py).
"""

from __future__ import annotations

import numpy as np

from sae_kernels.jit import jit, prange


@jit(parallel=True)
def sum_tokens(spread, groups, sums):
    """sums[p] = the sum of the first rows of the tokens of part p, all parts having equally many tokens."""
    tokens, parts = spread.shape[0] // groups, sums.shape[0]
    for p in prange(parts):
        total = sums[p]
        total[:] = 0
        for n in range(tokens * p // parts, tokens * (p + 1) // parts):
            row = spread[n * groups]
            for j in range(row.shape[0]):
                total[j] += row[j]


@jit(parallel=True)
def sum_rows(rows, weights, sums):
    """sums[p] = Σ weights[f] rows[f] over the rows of part p, all parts having equally many rows."""
    count, parts = rows.shape[0], sums.shape[0]
    for p in prange(parts):
        total = sums[p]
        total[:] = 0
        for f in range(count * p // parts, count * (p + 1) // parts):
            row = rows[f]
            for j in range(row.shape[0]):
                total[j] += weights[f] * row[j]


@jit()
def add_parts(sums, sign, out):
    for p in range(sums.shape[0]):
        for j in range(out.shape[0]):
            out[j] += sign * sums[p, j]


@jit(parallel=True)
def decode_and_compare(values, indices, starts, groups, W, b, target, spread, residual, squared_error, dots):
    """residual, squared_error, spread and dots of every token, as the fields of `StepForward`."""
    width = W.shape[1]
    share = np.float32(1) / np.float32(groups)
    for n in prange(target.shape[0]):
        error = np.float32(0)
        for g in range(groups):
            row = spread[n * groups + g]
            if g == 0:
                for j in range(width):
                    row[j] = target[n, j] - b[j]
            else:
                for j in range(width):
                    row[j] = spread[n * groups + g - 1, j]
            _subtract(values, indices, starts[n * groups + g], starts[n * groups + g + 1], W, row)
            total = np.float32(0)
            for j in range(width):
                total += row[j] * row[j]
            error += total
        squared_error[n] = error * share
        if groups > 1:
            for j in range(width):
                residual[n, j] = spread[n * groups + groups - 1, j]
                spread[n * groups + groups - 1, j] *= share
            for g in range(groups - 2, -1, -1):
                row, later = spread[n * groups + g], spread[n * groups + g + 1]
                for j in range(width):
                    row[j] = row[j] * share + later[j]
        # the same atoms again, from the cache, for the gradients of the values
        for g in range(groups):
            row = spread[n * groups + g]
            for i in range(starts[n * groups + g], starts[n * groups + g + 1]):
                w0 = W[indices[i]]
                total = np.float32(0)
                for j in range(width):
                    total += row[j] * w0[j]
                dots[i] = total


@jit()
def _subtract(values, indices, i, stop, W, row):
    """row -= Σ f_i w_i over the entries i:stop, four at a time, so that the row is read and written once a group."""
    width = row.shape[0]
    while i + 4 <= stop:
        w0, w1, w2, w3 = W[indices[i]], W[indices[i + 1]], W[indices[i + 2]], W[indices[i + 3]]
        f0, f1, f2, f3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        for j in range(width):
            row[j] -= (f0 * w0[j] + f1 * w1[j]) + (f2 * w2[j] + f3 * w3[j])
        i += 4
    while i < stop:
        w0, f0 = W[indices[i]], values[i]
        for j in range(width):
            row[j] -= f0 * w0[j]
        i += 1


@jit()
def _gather(order, f, values, through, spread, x, groups, place, extra, factor, g_dec, g_enc):
    """g_dec, g_enc = the gradient rows of latent f; returns its gradient of b_enc and whether there is any gradient."""
    bounds, _, tokens, entries = order
    width, width_in = g_dec.shape[0], g_enc.shape[0]
    g_dec[:] = 0
    g_enc[:] = 0
    bias = np.float32(0)
    i, stop = bounds[f], bounds[f + 1]
    # two tokens at a time, so that the sums are read and written half as often
    while i + 2 <= stop:
        r0, r1 = spread[tokens[i]], spread[tokens[i + 1]]
        c0, c1 = x[tokens[i] // groups], x[tokens[i + 1] // groups]
        value0, value1 = values[entries[i]] * factor, values[entries[i + 1]] * factor
        slope0, slope1 = through[entries[i]], through[entries[i + 1]]
        bias += slope0 + slope1
        for j in range(width):
            g_dec[j] += value0 * r0[j] + value1 * r1[j]
        for j in range(width_in):
            g_enc[j] += slope0 * c0[j] + slope1 * c1[j]
        i += 2
    if i < stop:
        r0, c0 = spread[tokens[i]], x[tokens[i] // groups]
        value0, slope0 = values[entries[i]] * factor, through[entries[i]]
        bias += slope0
        for j in range(width):
            g_dec[j] += value0 * r0[j]
        for j in range(width_in):
            g_enc[j] += slope0 * c0[j]
    some = bounds[f + 1] > bounds[f]
    if place.shape[0] > 0 and place[f] >= 0:
        some = True
        e_enc, e_bias, e_dec = extra[0][place[f]], extra[1][place[f]], extra[2][place[f]]
        bias += e_bias
        for j in range(width):
            g_dec[j] += e_dec[j]
        for j in range(width_in):
            g_enc[j] += e_enc[j]
    return bias, some


@jit()
def _adam_row(p, g, m, v, constants, scale):
    b1, c1, b2, c2, rate, root, eps = constants
    for j in range(p.shape[0]):
        part = g[j] * scale
        first = b1 * m[j] + c1 * part
        second = b2 * v[j] + c2 * part * part
        m[j], v[j] = first, second
        p[j] -= rate * first / (np.sqrt(second) * root + eps)


@jit()
def _adam_unit_row(p, g, m, v, constants, scale):
    """The same on an atom, with its gradient projected orthogonally to it and its norm restored."""
    width = p.shape[0]
    along = np.float32(0)
    for j in range(width):
        along += g[j] * p[j]
    for j in range(width):
        g[j] -= along * p[j]
    _adam_row(p, g, m, v, constants, scale)
    square = np.float32(0)
    for j in range(width):
        square += p[j] * p[j]
    shrink = np.float32(1) / max(np.sqrt(square), np.float32(1.1754944e-38))
    for j in range(width):
        p[j] *= shrink


@jit(parallel=True)
def sweep_latents(
    order,
    values,
    through,
    spread,
    x,
    groups,
    place,
    extra,
    params,
    m,
    v,
    factor,
    tied,
    sums,
    squares,
    constants,
    scale,
    write,
):
    """Compute the gradients latent by latent and, if `write`, update parameters and moments by Adam.

    Fills, for every part of the latents, the sum of the gradients' squares, and with `tied` Σ_f grad_b_enc[f] W_enc[f].
    """
    parts = order[1]
    W_enc, b_enc, W_dec = params
    width = W_enc.shape[1]
    for p in prange(parts.shape[0] - 1):
        g_dec, g_enc = np.empty(W_dec.shape[1], np.float32), np.empty(width, np.float32)
        g_bias = np.empty(1, np.float32)
        total = 0.0
        sums[p, :] = 0
        for f in range(parts[p], parts[p + 1]):
            bias, some = _gather(order, f, values, through, spread, x, groups, place, extra, factor, g_dec, g_enc)
            if some:
                square = np.float32(0)
                for j in range(g_dec.shape[0]):
                    square += g_dec[j] * g_dec[j]
                for j in range(width):
                    square += g_enc[j] * g_enc[j]
                total += np.float64(square) + np.float64(bias) * np.float64(bias)
                if tied:
                    for j in range(width):
                        sums[p, j] += bias * W_enc[f, j]
            if write:
                g_bias[0] = bias
                entry = slice(f, f + 1)
                _adam_row(b_enc[entry], g_bias, m[1][entry], v[1][entry], constants, scale)
                _adam_row(W_enc[f], g_enc, m[0][f], v[0][f], constants, scale)
                _adam_unit_row(W_dec[f], g_dec, m[2][f], v[2][f], constants, scale)
        squares[p] = total
