"""How weights and moments are stored in fewer bits, the reference.

A step computes in fp32 and then rounds each number at random to one of its two neighbours in the format, with the mean
kept. Rounding to the nearest one would stop the second moment, which changes by a thousandth of itself in a step. The
random bits are a hash of the number's place and the step, the same on every backend and after a run is resumed.

- bf16: moments, and weights. Storing weights so instead of rounding fp32 masters follows Zamirai et al. 2020
  ("Revisiting BFloat16 Training").
- 8 bits: moments, blockwise as in Dettmers et al. 2022 ("8-bit Optimizers via Block-wise Quantization"), a block being
  a latent's row. A code is a small float as there: of the first moment a sign, 4 bits of exponent and 3 of mantissa
  (steps of at most an eighth, down to 2^-15 of the row's largest); of the second 5 bits of exponent and 3 of mantissa
  (down to 2^-31). The scale is a power of two, as in the OCP Microscaling formats (MX, 2023), so that a number that
  lies on the grid still does when the scale changes, and random rounding adds no noise to it. A second moment that is
  not zero never becomes zero: its update would be divided by epsilon alone.

The 8-bit moment of a matrix [F, d] is uint8 [F, d + 16]: the codes of a row, the exponent of its scale, and 15 unused
bytes that keep rows aligned. Zeros everywhere mean zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

STRIDE = 0x9E3779B1
"""Distance of the places of two steps, in `noise`."""
TAIL = 16
"""Bytes behind the codes of a row of 8-bit moments."""
BINADES = {"m": 15, "v": 31}
"""Powers of two between the exponents of a row's largest code and of its smallest."""
MOMENTS = (torch.float32, torch.bfloat16, torch.uint8)
"""The dtypes of moments of a matrix."""

Kind = Literal["m", "v", "w"]
"""First moment, second moment or weight; each draws bits of its own."""


def noise(size: int, step: int, device: torch.device) -> Tensor:
    """32 random bits for each of `size` elements at a step, int64 in [0, 2^32): a hash of place and step."""
    return _hash((torch.arange(size, device=device) + step * STRIDE) & 0xFFFFFFFF)


def _hash(bits: Tensor) -> Tensor:
    """lowbias32 (C. Wellons, hash-prospector, 2018)."""
    mask = 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & mask
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & mask
    return bits ^ (bits >> 16)


def zero_moment(param: Tensor, dtype: torch.dtype) -> Tensor:
    """A moment of `param` that is zero: of its shape, or uint8 [F, d + 16] for a matrix [F, d]."""
    return torch.zeros(moment_shape(param, dtype), dtype=dtype, device=param.device)


def moment_shape(param: Tensor, dtype: torch.dtype) -> tuple[int, ...]:
    """Shape of a moment of `param` in a dtype."""
    return (param.shape[0], param.shape[1] + TAIL) if dtype == torch.uint8 else tuple(param.shape)


def expanded(stored: Tensor, kind: Kind) -> Tensor:
    """The numbers that are stored, in fp32 (fp64 stays fp64)."""
    if stored.dtype != torch.uint8:
        return stored if stored.dtype == torch.float64 else stored.float()
    codes, exponents = stored[:, :-TAIL].long(), stored[:, -TAIL, None].long()
    sizes = codes & 0x7F if kind == "m" else codes
    bits = ((sizes << 20) + ((exponents - BINADES[kind]) << 23)).clamp_min(0)
    values = torch.where(sizes == 0, 0, bits).to(torch.int32).view(torch.float32)
    return torch.where(codes > sizes, -values, values)


def store(values: Tensor, stored: Tensor, kind: Kind, step: int) -> Tensor:
    """`values` [...] rounded at random to the format of `stored`; not written there."""
    if stored.dtype not in (torch.bfloat16, torch.uint8):
        return values
    bits = noise(values.numel(), step, values.device).view(values.shape)
    bits = {"m": bits, "v": bits >> 16, "w": _hash(bits)}[kind] & 0xFFFF
    whole = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    if stored.dtype == torch.bfloat16:
        short = ((whole + bits) >> 16) & 0xFFFF
        return torch.where(short < 1 << 15, short, short - (1 << 16)).to(torch.int16).view(torch.bfloat16)
    sizes = whole & 0x7FFFFFFF
    # one more where the largest may be rounded up to the next power of two
    exponents = (sizes.amax(1, keepdim=True) + 0xFFFFF) >> 23
    codes = (sizes - ((exponents - BINADES[kind]) << 23) + (bits << 4)) >> 20
    codes = codes.clamp(0, 127) + ((whole >> 31) << 7) if kind == "m" else codes.clamp(1, 255)
    codes = torch.where(sizes == 0, 0, codes)
    return torch.nn.functional.pad(torch.cat([codes, exponents], 1), (0, TAIL - 1)).to(torch.uint8)
