"""What the two sides of the interop check share: random autoencoders, inputs, and files with results.

It needs torch and safetensors alone, because it runs in the other tools' environments too, where sae is not installed.

    python with_saelens.py make OUT [d F N]   # their code saves OUT/NAME/..., with OUT/NAME.expected.safetensors
    python with_saelens.py load FOLDER        # their code loads each FOLDER/NAME, writes FOLDER/NAME.result.safetensors
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Inputs [N, d] -> codes [N, F] and reconstruction [N, d_out], by the other tool's code."""


class Made(NamedTuple):
    """An autoencoder that the other tool has saved."""

    name: str
    """Architecture, and a setting where there are several."""
    forward: Forward
    """What its own loader made of the file."""


def inputs(dim: int, count: int = 256, seed: int = 7) -> Tensor:
    """Activations [count, dim] as of a language model: a mean far from zero, unequal variances."""
    draw = torch.Generator().manual_seed(seed)
    scales = 1 + 5 * torch.rand(dim, generator=draw)
    return torch.randn(count, dim, generator=draw) * scales + 4 * torch.randn(dim, generator=draw)


def of_layer(x: Tensor, layer: int) -> Tensor:
    """What a cross-layer transcoder reads at a layer, of inputs x [N, d] at the first one."""
    return x.roll(layer, 0)


def weights(dim: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights: atoms of norms 0.5 to 2, encoder rows near their directions, biases and thresholds that matter.

    W_enc [F, d], b_enc [F], W_dec [F, d], b_dec [d], W_skip [d, d], threshold [F], r [F], s [F].
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    W_dec = torch.nn.functional.normalize(normal(width, dim), dim=1)
    W_enc = W_dec * (0.5 + uniform(width, 1)) + 0.05 * normal(width, dim)
    return {
        "W_enc": W_enc,
        "b_enc": normal(width) - 2,
        "W_dec": W_dec * (0.5 + 1.5 * uniform(width, 1)),
        "b_dec": normal(dim),
        "W_skip": 0.3 * normal(dim, dim),
        "threshold": 1 + 3 * uniform(width),
        "r": 0.3 * normal(width),
        "s": normal(width),
    }


def assign(module: torch.nn.Module, **tensors: Tensor) -> None:
    """Copy values into parameters or buffers of these names, dots as double underscores."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            target = module
            *parts, last = name.split("__")
            for part in parts:
                target = getattr(target, part)
            slot = getattr(target, last)
            assert slot.shape == tensor.shape, (name, slot.shape, tensor.shape)
            slot.copy_(tensor)


def main(make: Callable[[Path, int, int], Iterator[Made]], load: Callable[[Path], Forward]) -> None:
    """The command line of one tool's script."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        dim, width, count = (int(value) for value in sys.argv[3:] or (64, 256, 256))
        folder.mkdir(parents=True, exist_ok=True)
        x = inputs(dim, count)
        for made in make(folder, dim, width):
            with torch.no_grad():
                codes, reconstruction = made.forward(x.clone())
            results = {"inputs": x, "codes": codes, "reconstruction": reconstruction}
            save(folder / f"{made.name}.expected.safetensors", results)
        return
    refused: dict[str, str] = {}
    for path in sorted(folder.glob("*.expected.safetensors")):
        name = path.name.removesuffix(".expected.safetensors")
        try:
            with torch.no_grad():
                codes, reconstruction = load(folder / name)(load_file(path)["inputs"])
            save(folder / f"{name}.result.safetensors", {"codes": codes, "reconstruction": reconstruction})
        except Exception as error:  # any failure of theirs is a finding, shown in the table
            traceback.print_exc()
            refused[name] = f"{type(error).__name__}: {error}"
    (folder / "failures.json").write_text(json.dumps(refused))


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.detach().float().contiguous().clone() for name, t in tensors.items()}, path)
