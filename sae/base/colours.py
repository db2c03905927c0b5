"""Signed images in colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

DIVERGING = "PuOr"  # orange below zero, purple above: told apart whatever colours the eye sees


def diverging(images: Tensor, shape: Sequence[int], *, limit: float | Tensor | None = None) -> Tensor:
    """Signed images [n, C·H·W] as colours [n, 3·H·W]: white at 0, purple up to `limit`, orange down to -limit.

    Args:
        images: real numbers; those of three channels become brighter or darker than grey, channel by channel.
        shape: [C, H, W].
        limit: one number, or one an image [n]; by default the largest magnitude of all of them.
    """
    pixels = images.detach().cpu().float()
    bound = torch.as_tensor(pixels.abs().max() if limit is None else limit, dtype=torch.float32).view(-1, 1)
    scaled = 0.5 + 0.5 * (pixels / bound.clamp_min(1e-12)).clamp(-1, 1)
    if shape[0] == 3:
        return scaled
    colours = colormaps[DIVERGING](scaled.view(len(images), *shape[1:]).numpy())[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colours)).float().permute(0, 3, 1, 2).flatten(1)
