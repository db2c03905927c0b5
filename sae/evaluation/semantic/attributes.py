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
from sae.evaluation.semantic.cities import AttributeTask
from sae.evaluation.semantic.intervals import Metric, Resamples, compared, weighted_mean
from sae.evaluation.semantic.reading import padded, token_ids
from sae.evaluation.semantic.results import SAE, Row
from sae.harvest.hooks import check_replaceable
from sae.harvest.language_model import LanguageModel
from sae.harvest.replay import Clean, Passes
from sae.harvest.sites import Site
from sae.runs.text import Run, joined

WHOLE = "whole activation"
"""The control that swaps t itself."""
AT_ONCE = 32
"""Prompts of a forward."""
LEAST_KNOWN = 8
"""Entities that the model must answer for, and pairs."""


class Prompt(NamedTuple):
    """One attribute's prompt, for n entities."""

    answers: np.ndarray
    """First token of each entity's value, int64 [n]."""
    said: np.ndarray
    """The model's own next token, int64 [n]."""
    inputs: Tensor
    """What the autoencoder reads at the last token of each entity's name [n, d], float32 on the CPU."""
    targets: Tensor
    """What its reconstruction takes the place of [n, d_out]."""
    cleans: list[Clean]
    """Forward passes of `AT_ONCE` entities each, from which changed ones begin."""
    at: np.ndarray
    """Column of the entity's last token, int64 [n]."""
    last: np.ndarray
    """Column of the prompt's last token, int64 [n]."""

    def of(self, entities: np.ndarray) -> Prompt:
        """Of some entities, given by their numbers; no changed passes can begin from it."""
        rows = (part[entities] for part in (self.answers, self.said, self.inputs, self.targets))
        return Prompt(*rows, [], self.at[entities], self.last[entities])


class Reader:
    """A language model that is asked for attributes, with activations changed at a run's target sites."""

    def __init__(self, run: Run, lm: LanguageModel, task: AttributeTask) -> None:
        self.run, self.lm, self.task = run, lm, task
        for site in run.targets:
            check_replaceable(site)
        self.passes = Passes(lm.model)

    def ask(self, entities: Sequence[str]) -> dict[str, Prompt]:
        """Attribute -> what the model reads and says of these entities."""
        return {attribute: self._ask(attribute, entities) for attribute in self.task.templates}

    def changed(self, prompt: Prompt, batch: int, targets: Tensor) -> np.ndarray:
        """The next tokens of one batch of the prompt's entities, with other target activations [n, d_out] there."""
        clean, rows = prompt.cleans[batch], slice(batch * AT_ONCE, batch * AT_ONCE + len(targets))
        at = torch.from_numpy(prompt.at[rows])
        parts = targets.split([site.width or targets.shape[1] for site in self.run.targets], dim=1)

        def put(part: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(activation: Tensor) -> Tensor:
                new = activation.clone()
                new[torch.arange(len(part)), at] = part.to(activation)
                return new

            return replace

        replacements = {site: put(part) for site, part in zip(self.run.targets, parts, strict=True)}
        return self._next(self.passes.spliced(clean, replacements), prompt.last[rows])

    def _ask(self, attribute: str, entities: Sequence[str]) -> Prompt:
        template = self.task.templates[attribute]
        before = template.partition("{entity}")[0]
        begin = len(self.lm.beginning)
        ids = [token_ids(self.lm, template.format(entity=entity)) for entity in entities]
        at = np.array([begin + len(token_ids(self.lm, before + entity)) - 1 for entity in entities])
        last = np.array([begin + len(of) - 1 for of in ids])
        answers = [token_ids(self.lm, " " + self.task.entities[entity][attribute])[0] for entity in entities]
        places: list[Sequence[Site]] = [self.run.targets]
        said, inputs, targets, cleans = [], [], [], []
        for first in range(0, len(ids), AT_ONCE):
            given = padded(self.lm, ids[first : first + AT_ONCE])
            if not cleans:
                self.passes.verify(given, places)
            clean = self.passes.clean(given, self.run.sites, places)
            here = slice(first, first + AT_ONCE)
            there = torch.from_numpy(at[here])
            rows = {name: a[torch.arange(len(there)), there].cpu() for name, a in clean.activations.items()}
            inputs.append(joined(rows, self.run.inputs))
            targets.append(joined(rows, self.run.targets))
            said.append(self._next(clean.hidden, last[here]))
            cleans.append(clean)
        return Prompt(np.array(answers), np.concatenate(said), torch.cat(inputs), torch.cat(targets), cleans, at, last)

    def _next(self, hidden: Tensor, last: np.ndarray) -> np.ndarray:
        rows = hidden[torch.arange(len(last)), torch.from_numpy(last)]
        return self.passes.logits(rows).argmax(1).cpu().numpy()


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
    """Numbers of the entities whose latents are looked at and of those that are tested, every kind in both."""
    kinds = ["/".join(entity.values()) for entity in entities]
    order = draw.permutation(len(entities))
    seen: dict[str, int] = {}
    testing = np.zeros(len(entities), dtype=bool)
    for i in order:
        seen[kinds[i]] = seen.get(kinds[i], -1) + 1
        testing[i] = seen[kinds[i]] % 2 == 1
    return np.flatnonzero(~testing), np.flatnonzero(testing)


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
    return sum(len(of) * (of.mean(0, dtype=np.float64) - mean) ** 2 for of in groups) / len(z)


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
