"""One form for every code: rows to dense codes and back, with what is needed to hold it against others.

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

PLACES = 16  # training rows at which the change of the output by a latent is taken
NAT = 1 / math.log(2)  # bits


class Coder(NamedTuple):
    """A code of rows [n, D]: an autoencoder's, PCA's, or a control's."""

    encode: Callable[[Tensor], Tensor]
    """Rows [n, D] -> codes [n, F]; means, where the code is random."""
    decode: Callable[[Tensor], Tensor]
    """Codes [n, F] -> rows [n, D], differentiable."""
    gain: Tensor | None = None
    """How far the output moves for a unit of every latent [F]; None where it must be measured."""
    atoms: Tensor | None = None
    """Directions in which latents move the output [F, D]; None where a latent has none."""
    parameters: int = 0
    seconds: float | None = None
    """An epoch; None where nothing was trained."""
    native_bits: Callable[[Tensor], float] | None = None
    """The code's own account of its rate on rows [n, D], bits a sample; None where it keeps none."""
    active: Callable[[Tensor], int] | None = None
    """Its own count of active units on rows [n, D]; None: latents that vary."""


def coder_of(model: Autoencoder, train: Tensor, *, seconds: float | None = None) -> Coder:
    """The form of an autoencoder.

    Args:
        model: in its saved form.
        train: rows it learnt from [n, D], at some of which a network's atoms are measured.
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
        active=_active(model) if isinstance(model.code, Gaussian) else None,
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
    """KL from the prior of a Gaussian code; log2 F for every place of a codebook's."""
    if isinstance(model.code, Quantised):
        bits = model.positions * math.log2(model.width)
        return lambda x: bits
    if isinstance(model.code, Gaussian):
        return lambda x: kl_per_latent(*moments(model, x)).sum(1).mean().item() * NAT
    return None


def _active(model: Autoencoder) -> Callable[[Tensor], int]:
    return lambda x: activity(*moments(model, x)).active
