"""Which tokens of a generation are steered, and the session in which a run's latents are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sae.config import ConfigError
from sae.features.store.store import FeatureStore
from sae.harvest.attach import Session
from sae.harvest.intervene import Effect, Intervention
from sae.runs.text import Run

OVERFLOW = "--scale: the model's activations overflow with this strength; lower it"


class SteerError(ValueError):
    """These latents, this model or this run cannot be steered; the message says why, and names the remedy."""


def steered_tokens(
    where: Literal["every", "generated"] | Sequence[int], *, prompt: int, skip_first: bool, total: int
) -> Tensor:
    """Whether each token of prompt and generation is steered, bool [total].

    Args:
        where: "every", "generated", or positions.
        prompt: number of tokens of the prompt.
        skip_first: leave BOS alone, unless its position is given.
        total: number of tokens of prompt and generation.

    Raises:
        SteerError: another word, or a position outside.
    """
    steered = torch.zeros(total, dtype=torch.bool)
    if isinstance(where, str):
        if where not in ("every", "generated"):
            raise SteerError(f"--where {where}: expected every, generated or positions")
        steered[prompt if where == "generated" else 0 :] = True
        if skip_first:
            steered[0] = False
        return steered
    for position in where:
        if not 0 <= position < total:
            raise SteerError(f"--where {position}: the prompt and its continuation have tokens 0 to {total - 1}")
        steered[position] = True
    return steered


def largest_activation(store: FeatureStore, latent: int, remedy: str = "") -> float:
    """A latent's largest activation in the collected data, the unit of strengths.

    Raises:
        SteerError: there is no such latent, or it never fired; `remedy` ends the message.
    """
    if not 0 <= latent < store.width:
        raise SteerError(f"--latent {latent}: the run has latents 0 to {store.width - 1}")
    row = store.scalars[latent]
    if row["count"] == 0 or not row["max"] > 0:
        never = "it never fired in the collected tokens, so it has no maximum to scale by"
        raise SteerError(f"--latent {latent}: {never}{remedy and '; '}{remedy}")
    return float(row["max"])


def steering(run: Run, model: nn.Module, effects: Sequence[Effect], steered: Tensor) -> Session:
    """A session that steers a run's latents in the language model, in force within a `with` block.

    Args:
        run: the latents' run.
        model: the language model in which the run's sites are.
        effects: what is done to which latents.
        steered: which tokens of prompt and generation, bool [total], from `steered_tokens`.

    Raises:
        SteerError: `set` or `ablate` where the latents cannot be known in time.
    """
    try:
        change = Intervention(str(run.folder), run.model, run.inputs, run.targets, effects=effects)
    except ConfigError as error:
        raise SteerError(f"--mode: {error}") from error
    return Session(model, {str(run.folder): change}, where=steered)


def note_of(run: Run) -> str | None:
    """Where atoms are added, if not where the autoencoder reads."""
    if run.inputs == run.targets:
        return None
    read, written = (", ".join(s.name for s in sites) for sites in (run.inputs, run.targets))
    return f"this run predicts {written} from {read}: the atoms are added at {written}"
