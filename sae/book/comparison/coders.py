"""One interface for every code: rows to dense codes and back, and the properties by which codes are compared.

coder = coder_of(run.model, ground.train, seconds=1.5)
coder.decode(coder.encode(x))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sae.evaluation.variational import activity, moments
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Gaussian, Quantised
from sae.modules.divergences import kl_per_latent
from sae.runs.images import dense_codes

PLACES = 16  # training rows at which the change of the output by a latent is measured


class Coder(NamedTuple):
    """A code of rows [n, D]: an autoencoder's, PCA's, or a control's."""

    encode: Callable[[Tensor], Tensor]
    """Rows [n, D] -> codes [n, F]; means, if the code is random."""
    decode: Callable[[Tensor], Tensor]
    """Codes [n, F] -> rows [n, D], differentiable."""
    gain: Tensor | None = None
    """How far the output moves for a unit of every latent [F]; None if it must be measured."""
    atoms: Tensor | None = None
    """Directions in which latents move the output [F, D]; None if a latent has none."""
    parameters: int = 0
    seconds: float | None = None
    """Of an epoch; None if nothing was trained."""
    native_bits: Callable[[Tensor], float] | None = None
    """The rate that the model itself assigns to rows [n, D], bits a sample; None if it has none."""
    active: Callable[[Tensor], int] | None = None
    """Count of active units on rows [n, D]; None counts latents that vary."""


def coder_of(model: Autoencoder, train: Tensor, *, seconds: float | None = None) -> Coder:
    """An autoencoder as a `Coder`.

    Args:
        model: in its saved form.
        train: training rows [n, D], at some of which a network's atoms are measured.
        seconds: of an epoch of its training.
    """
    linear = model.head is None

    def decode(z: Tensor) -> Tensor:
        return model.show(model.dictionary.decode_dense(z.reshape(-1, model.width)))

    def encode(x: Tensor) -> Tensor:
        return dense_codes(model, x)

    atoms = None
    if linear:
        atoms = model.dictionary.W.detach()
    elif not isinstance(model.code, Quantised):
        atoms = changes(decode, encode(train))
    return Coder(
        encode=encode,
        decode=decode,
        gain=model.dictionary.W.detach().norm(dim=1) if linear else None,
        atoms=atoms,
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=seconds,
        native_bits=_native(model),
        active=(lambda x: activity(*moments(model, x)).active) if isinstance(model.code, Gaussian) else None,
    )


@torch.no_grad()
def changes(decode: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
    """Mean change of the output for a standard deviation of every latent, [F, D].

    Central differences, decode(z + s_j e_j) - decode(z - s_j e_j), halved, at `PLACES` rows of the
    codes [n, F]: a network's counterpart of an atom. A latent that never varies changes nothing.
    """
    spread, places = codes.std(0), codes[:: max(1, len(codes) // PLACES)][:PLACES]
    effects = []
    for j in range(codes.shape[1]):
        step = torch.zeros(codes.shape[1])
        step[j] = spread[j]
        effects.append(((decode(places + step) - decode(places - step)) / 2).mean(0))
    return torch.stack(effects)


def _native(model: Autoencoder) -> Callable[[Tensor], float] | None:
    """KL from the prior of a Gaussian code; log2 F for every place of a quantised one."""
    if isinstance(model.code, Quantised):
        bits = model.positions * math.log2(model.width)
        return lambda x: bits
    if isinstance(model.code, Gaussian):
        return lambda x: kl_per_latent(*moments(model, x)).sum(1).mean().item() / math.log(2)
    return None
