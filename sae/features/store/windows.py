"""A latent's activations around an event, in one byte a token.

A window has BACK tokens before the event, the event, and AHEAD after it, within the event's segment. Values are whole
255ths of a scale: the event's value (which is stored exactly elsewhere) times a factor of at least 1 that covers the
window's largest value. The factor stands at the event's place, so a window takes one byte a token. A value is off by at
most 1/255 of the scale; a positive one is never rounded to zero.

    window = encode(around, value)       # uint8 [n, WIDTH]
    decode(window, value)                # float32 [n, WIDTH]
"""

from __future__ import annotations

import torch
from torch import Tensor

BACK, AHEAD = 24, 8
WIDTH = BACK + 1 + AHEAD
_ONE = 127 << 2  # the number 1 in the upper bits of a float32: exponent and two bits of mantissa


def encode(around: Tensor, value: Tensor) -> Tensor:
    """Activations [n, WIDTH] float32, 0 where silent or outside the segment, around events of `value` [n] -> uint8."""
    ratio = around.amax(1) / value
    bits = ratio.clamp(1, 2.0**60).view(torch.int32)
    steps = ((bits >> 21) - _ONE + ((bits & (1 << 21) - 1) != 0).int()).clamp(max=255)
    scale = value * _factor(steps)
    codes = (around / scale.unsqueeze(1) * 255).round().clamp(max=255)
    codes = torch.where(around > 0, codes.clamp(min=1), 0).to(torch.uint8)
    codes[:, BACK] = steps.to(torch.uint8)
    return codes


def decode(window: Tensor, value: Tensor) -> Tensor:
    """Windows from `encode` and the events' values [n] -> activations [n, WIDTH], float32."""
    scale = value * _factor(window[:, BACK].int())
    around = window.float() / 255 * scale.unsqueeze(1)
    around[:, BACK] = value
    return around


def _factor(steps: Tensor) -> Tensor:
    """1, 1.25, 1.5, 1.75, 2, 2.5, ... for 0, 1, 2, ..."""
    return ((steps + _ONE) << 21).view(torch.float32)
