"""Codes: how a linear encoder's output becomes the latent code; one file a family."""

from sae.modules.codes.base import CODES, Code, make_code, per_entry, register
from sae.modules.codes.dense import Identity, ReLU, Sigmoid
from sae.modules.codes.gated import Gated
from sae.modules.codes.gaussian import Gaussian, drawn
from sae.modules.codes.jumprelu import JumpReLU
from sae.modules.codes.pursuit import MatchingPursuit
from sae.modules.codes.quantised import Quantised
from sae.modules.codes.topk import BatchTopK, TopK

__all__ = [
    "CODES",
    "BatchTopK",
    "Code",
    "Gated",
    "Gaussian",
    "Identity",
    "JumpReLU",
    "MatchingPursuit",
    "Quantised",
    "ReLU",
    "Sigmoid",
    "TopK",
    "drawn",
    "make_code",
    "per_entry",
    "register",
]
