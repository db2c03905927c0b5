"""pursue: the codes of a matching pursuit, k greedy steps on the residual."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, no_autocast
from sae_kernels.pursue import naive

IMPLEMENTATIONS = {"naive": naive.pursue, "cpu": "sae_kernels.pursue.cpu:pursue"}


def pursue(x: Tensor, W: Tensor, k: int) -> SparseCodes:
    """j_t = argmax_j w_j·r_(t-1), f_t = relu(w_j·r_(t-1)), r_t = r_(t-1) - f_t w_j, from r_0 = x (Mallat & Zhang 1993).

    No atom is selected twice. Not differentiable: a training step recomputes the values of the selected atoms.

    Args:
        x: signals to approximate [N, d].
        W: atoms of unit norm [F, d].
        k: steps, 1 <= k <= F.

    Returns:
        Rectangular codes [N, k], in the order of the steps; zero where no inner product is positive.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    if x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[1]:
        raise ValueError(f"expected x [N, d] and W [F, d]; got {tuple(x.shape)} and {tuple(W.shape)}")
    if not 1 <= k <= W.shape[0]:
        raise ValueError(f"k = {k} is outside 1..{W.shape[0]}, the number of latents")
    with torch.no_grad(), no_autocast(x.device.type):
        values, indices = choose("pursue", x, IMPLEMENTATIONS)(x, W, k)
    return SparseCodes(values, indices, W.shape[0])
