"""sparsify's side of the interop check: `SparseCoder.load_from_disk`, `encode`, `decode`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from exchange import Forward, Made, assign, main, weights
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

CASES: dict[str, dict[str, Any]] = {
    "topk": {},
    "topk-skip": {"skip_connection": True},
    "groupmax": {"activation": "groupmax"},
    "transcoder": {"transcode": True},
    "skip_transcoder": {"transcode": True, "skip_connection": True},
}


def make(out: Path, dim: int, width: int) -> Iterator[Made]:
    values = weights(dim, width)
    for name, settings in CASES.items():
        coder = SparseCoder(dim, SparseCoderConfig(num_latents=width, k=8, **settings))
        assign(coder, encoder__weight=values["W_enc"], encoder__bias=values["b_enc"])
        assign(coder, W_dec=values["W_dec"], b_dec=values["b_dec"])
        if coder.W_skip is not None:
            assign(coder, W_skip=values["W_skip"])
        coder.save_to_disk(out / name / ("layers.1.mlp" if "transcode" in settings else "layers.1"))
        yield Made(name, load(out / name))


def load(folder: Path) -> Forward:
    (place,) = [path.parent for path in folder.rglob("cfg.json")]
    coder = SparseCoder.load_from_disk(place)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = coder.encode(x)
        codes = torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)
        # the skip connection is in `forward` alone
        return codes, coder.decode(values, indices) if coder.W_skip is None else coder(x).sae_out

    return forward


if __name__ == "__main__":
    main(make, load)
