"""A layer of a cross-layer transcoder is a transcoder to several sites; the parts of all layers sum to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.interop import Imported, Origin, cross_layer, jump_relu

LAYERS, D, F = 3, 5, 12


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(i: int) -> Imported:
    return cross_layer(
        jump_relu(draw(F, seed=i).abs() / 2),
        Origin("invented"),
        W_enc=draw(F, D, seed=10 + i),
        b_enc=draw(F, seed=20 + i),
        W_dec=draw(F, LAYERS - i, D, seed=30 + i),
        b_dec=draw(D, seed=40 + i),
        source="invented",
    )


def test_the_parts_of_all_layers_sum_to_the_cross_layer_transcoder() -> None:
    x = draw(7, LAYERS, D, seed=1)
    whole = torch.zeros(7, LAYERS, D)
    expected = torch.stack([draw(D, seed=40 + i) for i in range(LAYERS)]).expand(7, -1, -1).clone()
    for i in range(LAYERS):
        whole[:, i:] += layer(i).model(x[:, i]).reconstruction.view(7, LAYERS - i, D)
        pre = x[:, i] @ draw(F, D, seed=10 + i).T + draw(F, seed=20 + i)
        f = pre * (pre > draw(F, seed=i).abs() / 2)
        expected[:, i:] += torch.einsum("nf,fld->nld", f, draw(F, LAYERS - i, D, seed=30 + i))
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


def test_decoders_and_bias_of_different_widths_are_refused() -> None:
    with pytest.raises(CorruptError, match=r"W_dec \(12, 2, 5\) and b_dec \(4,\), expected"):
        cross_layer(
            jump_relu(torch.zeros(F)),
            Origin("invented"),
            W_enc=draw(F, D, seed=0),
            b_enc=draw(F, seed=0),
            W_dec=draw(F, 2, D, seed=0),
            b_dec=draw(4, seed=0),
            source="invented",
        )
