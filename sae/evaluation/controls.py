"""What an autoencoder is compared with: reconstructions that need no learnt dictionary, on the same tokens.

    the mean                  x̂ = mu, the mean over the evaluation set
    PCA, m components         x̂ = mean + the projection on the first m principal components of training activations
    the k largest channels    x̂ = mean, but for the k coordinates that differ most from it, which are exact
    shuffled atoms            the codes of the autoencoder itself, decoded with its atoms in another order
    random dictionary         random atoms that stay as they are, with an encoder trained like the autoencoder's

A number means little without them: random dictionaries have matched trained ones on popular measures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from sae.evaluation.baselines import PCA
from sae.models.autoencoder import Autoencoder
from sae_kernels import SparseCodes

MEAN, SHUFFLED, RANDOM = "the mean", "shuffled atoms", "random dictionary"
SEED = 0
"""Of the order in which atoms are shuffled."""


def pca_name(components: int) -> str:
    """The name of PCA with some components."""
    return f"PCA, {components} components"


class Encoded(NamedTuple):
    """Rows, and what an autoencoder's encoder made of them."""

    x: Tensor
    """Inputs [n, d], float32."""
    target: Tensor
    """What is to be reconstructed [n, d_out], float32."""
    codes: SparseCodes


class Attempt(NamedTuple):
    """What a control makes of rows."""

    reconstruction: Tensor
    """[n, d_out]."""
    l0: Tensor
    """Numbers other than zero that stand for each row, [n]."""


class Control(NamedTuple):
    """A way to reconstruct rows."""

    name: str
    attempt: Callable[[Encoded], Attempt]
    of: Hashable
    """What it depends on beside its name and its targets: controls that are equal in these do the same."""
    training: dict[str, int] | None = None
    """The budget of its training, "tokens" and "epochs"; None where nothing was trained."""


def principal(pca: PCA, components: int) -> Control:
    """The projection on the leading principal components."""
    axes, mean = pca.components[:components].float(), pca.mean.float()

    def attempt(rows: Encoded) -> Attempt:
        there, centre = axes.to(rows.target.device), mean.to(rows.target.device)
        z = (rows.target - centre) @ there.T
        return Attempt(z @ there + centre, z.new_full((len(z),), components))

    return Control(pca_name(components), attempt, of=None)


def largest_channels(mean: Tensor, k: int) -> Control:
    """The k coordinates of each row that differ most from the mean [d_out], and the mean elsewhere."""

    def attempt(rows: Encoded) -> Attempt:
        centre = mean.to(rows.target)
        offset = rows.target - centre
        channels = offset.abs().topk(k, dim=1).indices
        kept = torch.zeros_like(offset).scatter_(1, channels, offset.gather(1, channels))
        return Attempt(kept + centre, offset.new_full((len(offset),), k))

    return Control(f"the {k} largest channels", attempt, of=None)


def shuffled_atoms(model: Autoencoder) -> Control:
    """The autoencoder's own codes, decoded with its atoms in a random order."""
    shuffled = copy.deepcopy(model)
    order = torch.randperm(model.width, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        shuffled.dictionary.W.copy_(model.dictionary.W[order.to(model.dictionary.W.device)])

    def attempt(rows: Encoded) -> Attempt:
        return Attempt(shuffled.decode(rows.codes, rows.x), rows.codes.l0())

    return Control(SHUFFLED, attempt, of=object())


def random_dictionary(model: Autoencoder, training: dict[str, int]) -> Control:
    """A dictionary of random atoms on the same inputs, whose encoder was trained on a stated budget."""

    def attempt(rows: Encoded) -> Attempt:
        codes, reconstruction = model(rows.x)
        return Attempt(reconstruction, codes.l0())

    return Control(RANDOM, attempt, of=model, training=training)


class TrainingRows(NamedTuple):
    """Rows that controls are fitted to, on the CPU."""

    inputs: Tensor
    """[n, d]."""
    targets: Tensor
    """[n, d_out]."""


class RandomDictionary(NamedTuple):
    """A dictionary of random atoms with a trained encoder, and its budget."""

    model: Autoencoder
    tokens: int
    """Training tokens."""
    epochs: int
    """How often each of them was read."""


def controls_of(
    wanted: str, model: Autoencoder, pca: PCA | None, dictionary: RandomDictionary | None, *, k: int
) -> list[Control] | None:
    """The controls of one autoencoder, but for the mean and PCA, whose sums `Reconstruction` has itself.

    Args:
        wanted: none, fast or all, as in `EvalConfig.controls`.
        model: the autoencoder.
        pca: of the targets' training rows; None leaves the channels out.
        dictionary: the random one; None leaves it out.
        k: channels.
    """
    if wanted == "none":
        return None
    channels = [] if pca is None else [largest_channels(pca.mean.float(), min(k, len(pca.mean)))]
    random = []
    if dictionary is not None:
        trained = dictionary.model.to(model.W_enc.device)
        random = [random_dictionary(trained, {"tokens": dictionary.tokens, "epochs": dictionary.epochs})]
    return [*channels, shuffled_atoms(model), *random]
