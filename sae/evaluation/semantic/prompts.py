"""A language model that is asked for attributes of entities, with activations changed at an autoencoder's sites.

reader = Reader(run, lm, CITIES)
prompt = reader.ask(["Paris", "Tokyo"])["country"]
prompt.said, prompt.answers                                 # next tokens, and what they should be
reader.changed(prompt, 0, prompt.targets.flip(0))           # next tokens with the two activations swapped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.evaluation.semantic.cities import AttributeTask
from sae.evaluation.semantic.reading import padded, token_ids
from sae.harvest.hooks import check_replaceable
from sae.harvest.language_model import LanguageModel
from sae.harvest.replay import Clean, Passes
from sae.harvest.sites import Site
from sae.runs.text import Run, joined

AT_ONCE = 32
"""Prompts of a forward."""


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
        parts = ("answers", "said", "inputs", "targets", "at", "last")
        return self._replace(cleans=[], **{part: getattr(self, part)[entities] for part in parts})


class Reader:
    """A language model that is asked for attributes, with activations changed at a run's target sites."""

    def __init__(self, run: Run, lm: LanguageModel, task: AttributeTask) -> None:
        self.run, self.lm, self.task = run, lm, task
        for site in run.targets:
            check_replaceable(site)
        self.passes = Passes(lm.model)
        self._verified = False

    def ask(self, entities: Sequence[str]) -> dict[str, Prompt]:
        """Attribute -> what the model reads and says of these entities."""
        return {attribute: self._ask(attribute, entities) for attribute in self.task.templates}

    def answers(self, attribute: str, entities: Sequence[str]) -> list[int]:
        """The first token of each entity's value."""
        return [token_ids(self.lm, f" {self.task.entities[entity][attribute]}")[0] for entity in entities]

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
        answers = self.answers(attribute, entities)
        places: list[Sequence[Site]] = [self.run.targets]
        said, inputs, targets, cleans = [], [], [], []
        for first in range(0, len(ids), AT_ONCE):
            given = padded(self.lm, ids[first : first + AT_ONCE])
            if not self._verified:
                self.passes.verify(given, places)
                self._verified = True
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
