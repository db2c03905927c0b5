"""Causal isolation of attributes: does moving an attribute's latents from one entity to another move it, and it alone?

In the manner of RAVEL (Huang et al. 2024, arXiv:2402.17700). Of a base (Paris) and a source (Tokyo) that differ in all
attributes, the model reads the base's prompt for each attribute, while at the last token of the base's name its target
activation t becomes

    t + (z_S(source) - z_S(base)) @ atoms_S

with S the k latents that carry attribute A. Then, over pairs,

    cause      share of pairs in which the prompt for A is answered with the source's value
    isolation  share of pairs in which prompts for other attributes are answered with the base's, mean over these
    score      mean of the two: 0.5 where nothing changes, and where the whole activation is swapped perfectly

An answer is the first token of the value, the likeliest of the whole vocabulary. Entities of which any prompt is
answered wrong without a change are left out. S are the latents with the largest variance between the attribute's values
times the squared length of the atom, over half of the entities; pairs are of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.config import ConfigError
from sae.evaluation.semantic.bases import Basis, best
from sae.evaluation.semantic.intervals import Metric, Resamples, compared, weighted_mean
from sae.evaluation.semantic.prompts import AT_ONCE, Prompt, Reader
from sae.evaluation.semantic.results import SAE, Row

WHOLE = "whole activation"
"""The control that swaps t itself."""
LEAST_KNOWN = 8
"""Entities that the model must answer for, and pairs."""


class Pairs(NamedTuple):
    """Bases and sources, as numbers among the known entities, each base once, int64 [p]."""

    base: np.ndarray
    source: np.ndarray


class Experiment(NamedTuple):
    """Known entities, half of them to choose latents by, and pairs of the others."""

    entities: list[dict[str, str]]
    """Attribute -> value, of each known entity."""
    prompts: dict[str, Prompt]
    """Attribute -> what the model reads of the known entities."""
    learning: np.ndarray
    """Numbers of the entities by which latents are chosen."""
    pairs: Pairs
    tested: dict[str, Prompt]
    """Attribute -> the bases' prompts, to begin changed passes from."""


def prepare(reader: Reader, *, pairs: int, seed: int) -> tuple[Experiment, dict[str, int]]:
    """Ask the model for all attributes, and draw pairs of entities that it knows.

    Returns:
        The experiment, and the numbers of "entities", "known" ones and "pairs".

    Raises:
        ConfigError: the model answers for too few entities.
    """
    task, draw = reader.task, np.random.default_rng(seed)
    asked = reader.ask(list(task.entities))
    right = np.flatnonzero(np.logical_and.reduce([prompt.said == prompt.answers for prompt in asked.values()]))
    known = [list(task.entities)[i] for i in right]
    entities = [task.entities[entity] for entity in known]
    counted = f"{len(known)} of {len(task.entities)} {task.name}"
    if len(known) < 2 * LEAST_KNOWN:
        raise ConfigError(f"the model answers all prompts about {counted}, expected {2 * LEAST_KNOWN}")
    learning, testing = halves(entities, draw)
    chosen = draw_pairs(entities, testing, draw, pairs)
    if len(chosen.base) < LEAST_KNOWN:
        raise ConfigError(
            f"the model answers all prompts about {counted}; {len(chosen.base)} pairs of these differ in all "
            f"attributes, expected {LEAST_KNOWN}"
        )
    prompts = {name: prompt.of(right) for name, prompt in asked.items()}
    tested = reader.ask([known[i] for i in chosen.base])
    counts = {"entities": len(task.entities), "known": len(known), "pairs": len(chosen.base)}
    return Experiment(entities, prompts, learning, chosen, tested), counts


def attribute_rows(
    reader: Reader,
    experiment: Experiment,
    bases: Sequence[Basis],
    ks: Sequence[int],
    resamples: Resamples,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """attributes.cause, .isolation and .score of every attribute.

    Args:
        reader: that prepared the experiment.
        experiment: of `prepare`.
        bases: the SAE and its controls; `whole activation` is added.
        ks: numbers of latents that are moved.
        resamples: of the pairs.
        seed: of latents drawn by chance.
        advance: called with 1 for every attribute, number of latents and basis.
    """
    prompts, pairs = experiment.prompts, experiment.pairs
    swapped = {name: prompt.targets[pairs.source] for name, prompt in prompts.items()}
    whole = _answers(reader, experiment.tested, swapped)
    codes = {basis.name: {name: _dense(basis, prompt) for name, prompt in prompts.items()} for basis in bases}
    rows: list[Row] = []
    for attribute in prompts:
        values = np.array([entity[attribute] for entity in experiment.entities])
        for k in ks:
            answers = {}
            for basis in bases:
                z = codes[basis.name]
                latents = carriers(list(z.values()), values, experiment.learning, basis, k, seed)
                moved = {name: prompts[name].targets[pairs.base] + _moved(z[name], basis, latents, pairs) for name in z}
                answers[basis.name] = _answers(reader, experiment.tested, moved)
                advance(1)
            answers[WHOLE] = whole
            rows += scored(attribute, k, answers, prompts, pairs, resamples)
    return rows


def carriers(
    z: Sequence[np.ndarray], values: np.ndarray, learning: np.ndarray, basis: Basis, k: int, seed: int
) -> np.ndarray:
    """The k latents that vary most between an attribute's values, int64.

    Args:
        z: of every entity in each prompt, [n, F] each.
        values: of every entity [n].
        learning: numbers of the entities that count.
    """
    carried = sum(between(of[learning], values[learning]) for of in z) * (basis.atoms**2).sum(1)
    fires = np.any([(of[learning] != 0).any(0) for of in z], axis=0)
    return best(carried, k, basis, fires, seed)


def halves(entities: Sequence[dict[str, str]], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the entities by which latents are chosen, and of those tested: every second one of each kind."""
    order = sorted(draw.permutation(len(entities)).tolist(), key=lambda i: tuple(entities[i].values()))
    return np.sort(order[0::2]), np.sort(order[1::2])


def draw_pairs(entities: Sequence[dict[str, str]], testing: np.ndarray, draw: np.random.Generator, most: int) -> Pairs:
    """A source for every tested entity, drawn from those tested ones that differ from it in all attributes."""
    base, source = [], []
    for i in draw.permutation(testing)[:most]:
        others = [j for j in testing if all(entities[i][a] != entities[j][a] for a in entities[i])]
        if others:
            base.append(i)
            source.append(draw.choice(others))
    return Pairs(np.array(base, dtype=np.int64), np.array(source, dtype=np.int64))


def between(z: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Variance between the means of the values' groups, weighted by their sizes, float64 [F].

    Args:
        z: [n, F].
        values: [n].
    """
    mean = z.mean(0, dtype=np.float64)
    groups = [z[values == value] for value in sorted(set(values.tolist()))]
    squares = [len(of) * (of.mean(0, dtype=np.float64) - mean) ** 2 for of in groups]
    return np.sum(squares, axis=0) / len(z)


def _moved(z: np.ndarray, basis: Basis, latents: np.ndarray, pairs: Pairs) -> Tensor:
    """What is added to the bases' activations, float32 [p, d]."""
    difference = z[pairs.source][:, latents] - z[pairs.base][:, latents]
    return torch.from_numpy((difference @ basis.atoms[latents]).astype(np.float32))


def _dense(basis: Basis, prompt: Prompt) -> np.ndarray:
    z = basis.encode(prompt.inputs, prompt.targets)
    return z if isinstance(z, np.ndarray) else z.toarray()


def _answers(reader: Reader, tested: dict[str, Prompt], targets: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Attribute -> next tokens [p] with other target activations at the bases' names."""
    return {
        name: np.concatenate(
            [reader.changed(prompt, batch, part) for batch, part in enumerate(targets[name].split(AT_ONCE))]
        )
        for name, prompt in tested.items()
    }


def scored(
    attribute: str,
    k: int,
    answers: dict[str, dict[str, np.ndarray]],
    prompts: dict[str, Prompt],
    pairs: Pairs,
    resamples: Resamples,
) -> list[Row]:
    """The rows of one attribute and number of latents.

    Args:
        answers: subject -> attribute -> next tokens after the change [p].
        prompts: with the answers of all known entities.
    """
    metrics: dict[str, dict[str, Metric]] = {"cause": {}, "isolation": {}, "score": {}}
    for subject in [SAE, *(name for name in answers if name != SAE)]:
        of = answers[subject]
        caused = (of[attribute] == prompts[attribute].answers[pairs.source]).astype(float)
        kept = np.mean(
            [of[name] == prompt.answers[pairs.base] for name, prompt in prompts.items() if name != attribute], axis=0
        )
        for name, value in (("cause", caused), ("isolation", kept), ("score", (caused + kept) / 2)):
            metrics[name][subject] = lambda weights, value=value: weighted_mean(value, weights)
    return [row for name, of in metrics.items() for row in compared(f"attributes.{name}", attribute, k, of, resamples)]
