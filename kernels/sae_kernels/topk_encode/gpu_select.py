"""The k largest of every row of order keys, in Triton: the k-th largest bit by bit, then compaction in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu_product import LOWEST_KEY
from sae_kernels.launch import launch


@triton.jit(do_not_specialize=["count", "chunks", "k"])
def _select(keys, positions, out_keys, out_positions, count, chunks, k, CHUNK: tl.constexpr, FIRST: tl.constexpr):
    """The k largest of every chunk of `keys` [N, count], in their order, and their positions.

    Positions are read from `positions`; if FIRST, they are the places in `keys` themselves.
    """
    i_n = (tl.program_id(0) // chunks).to(tl.int64)
    i_chunk = tl.program_id(0) % chunks
    o_in = i_chunk * CHUNK + tl.arange(0, CHUNK)
    b_key = tl.load(keys + i_n * count + o_in, mask=o_in < count, other=LOWEST_KEY)
    # the k-th largest key, bit by bit from the top, counting keys as unsigned; stops when exactly k reach it
    unsigned = tl.full((), 0, tl.int32)
    bit = 31
    count_above = k + 1
    while (bit >= 0) & (count_above != k):
        trial = unsigned | (1 << bit)
        n_above = tl.sum((b_key >= (trial ^ LOWEST_KEY)).to(tl.int32), 0)
        unsigned = tl.where(n_above >= k, trial, unsigned)
        count_above = tl.where(n_above >= k, n_above, count_above)
        bit -= 1
    threshold = unsigned ^ LOWEST_KEY
    m_above = b_key > threshold
    m_equal = b_key == threshold
    room = k - tl.sum(m_above.to(tl.int32), 0)
    m_kept = m_above | (m_equal & (tl.cumsum(m_equal.to(tl.int32), 0) <= room))
    o_out = (i_n * chunks + i_chunk) * k + tl.cumsum(m_kept.to(tl.int32), 0) - 1
    b_position = o_in
    if not FIRST:
        b_position = tl.load(positions + i_n * count + o_in, mask=o_in < count, other=0)
    tl.store(out_keys + o_out, b_key, mask=m_kept)
    tl.store(out_positions + o_out, b_position, mask=m_kept)


def values_of_keys(keys: Tensor) -> Tensor:
    """The fp32 values of order keys."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(torch.float32)


def sort_all(keys: Tensor, k: int, values: Tensor, indices: Tensor) -> None:
    """values, indices [N, k] = relu of the k largest of the keys [N, >= F] of all latents, by a stable sort."""
    best, places = keys.sort(dim=1, descending=True, stable=True)
    best = values_of_keys(best[:, :k])
    values.copy_(torch.where(best < 0, 0, best))
    indices.copy_(places[:, :k])


def select(keys: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The k largest keys of every row of `keys` [N, count] and their positions, int32 [N, k], ordered by position.

    A row longer than `chunk` is divided into chunks; the k largest are selected from the k largest of all chunks.
    """
    N, count = keys.shape
    chunk = max(chunk, 2 * triton.next_power_of_2(k))
    positions = keys
    first = True
    while True:
        size = min(chunk, max(16, triton.next_power_of_2(count)))
        chunks = triton.cdiv(count, size)
        out_keys = torch.empty(N, chunks * k, dtype=torch.int32, device=keys.device)
        out_positions = torch.empty_like(out_keys)
        launch(
            _select,
            (N * chunks,),
            {"keys": keys, "positions": positions, "out_keys": out_keys, "out_positions": out_positions}
            | {"count": count, "chunks": chunks, "k": k},
            {"CHUNK": size, "FIRST": first},
            warps=max(1, min(8, size // 512)),
        )
        keys, positions = out_keys, out_positions
        count, first = chunks * k, False
        if chunks == 1:
            return keys, positions
