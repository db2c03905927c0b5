"""The strongest control: a dictionary of random atoms that stay as they are, with a trained encoder.

What such a dictionary reaches needs no learnt atoms. Encoder and biases are trained like a TopK autoencoder's, by the
same trainer, on the training rows that the evaluation has read, `EPOCHS` times over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.base import draws
from sae.config import OptimConfig, SAEConfig
from sae.evaluation.controls import RandomDictionary
from sae.models.autoencoder import Autoencoder
from sae.models.language import recipe_of
from sae.training.trainer import Trainer

EPOCHS = 8
BATCH = 1024
"""Rows of a step, at most."""
FIRST_ROWS = 16_384
"""Rows whose scale and median set the normalisation and the pre-bias."""


def train_random_dictionary(x: Tensor, target: Tensor, like: Autoencoder, *, k: int, seed: int) -> RandomDictionary:
    """A TopK autoencoder of random, frozen atoms.

    Args:
        x: training inputs [n, d].
        target: what is to be reconstructed [n, d_out].
        like: its width, and whether it is a transcoder.
        k: latents of each row.
        seed: of the atoms and of the order of rows.
    """
    config = SAEConfig(variant="transcoder" if like.transcodes else "topk", width=like.width, k=k)
    recipe = recipe_of(config, [x.shape[1]], [target.shape[1]])
    recipe.model.dictionary.W.requires_grad_(False)
    batch = min(BATCH, len(x))
    steps = EPOCHS * (len(x) // batch)
    trainer = Trainer(
        recipe,
        OptimConfig(batch=batch),
        steps=steps,
        dead_after=max(1, steps * batch // 10),
        auxk=max(1, target.shape[1] // 2),
        device=like.W_enc.device,
        seed=seed,
    )
    trainer.initialise([x[:FIRST_ROWS]], [target[:FIRST_ROWS]])
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=draws.generator(seed, epoch, device="cpu"))
        for rows in order.split(batch)[: len(x) // batch]:
            inputs = x[rows]
            trainer.step(inputs, target[rows] if like.transcodes else inputs)
    return RandomDictionary(trainer.finished(), len(x), EPOCHS)
