"""The losses the long way: a whole pass for every splice, and an array of all tokens by the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sae.data.packing import Contexts
from sae.evaluation.bootstrap import GroupSums
from sae.evaluation.downstream import Splice
from sae.harvest.hooks import capture, splice
from sae.harvest.stream import ORDINARY, Harvest
from sae.runs.text import joined


@torch.no_grad()
def measure(harvest: Harvest, subject: Splice, batches: Iterable[Contexts]) -> dict[str, torch.Tensor]:
    """Sums a document, as those of `sae.evaluation.downstream.measure`."""
    sums = GroupSums()
    model = harvest.lm.model
    for contexts in batches:
        inside = (contexts.document >= 0)[:, 1:] & (contexts.position[:, 1:] == contexts.position[:, :-1] + 1)
        row, column = inside.nonzero(as_tuple=True)
        words = contexts.tokens[row, column + 1]
        inputs = harvest.inputs(contexts)

        def log_probabilities(inputs=inputs, row=row, column=column) -> torch.Tensor:
            return model(**inputs).logits[row, column].float().log_softmax(-1)

        with capture(model, harvest.sites, stop=False) as captured:
            clean = log_probabilities()
        flat = {name: a.flatten(0, 1).float() for name, a in captured.activations.items()}
        kind = harvest.token_kinds(contexts.tokens.flatten(), flat, harvest.wanted(contexts))
        ordinary = ((kind == ORDINARY) & (contexts.document.flatten() >= 0)).unsqueeze(1)
        target = joined(flat, subject.targets)
        reconstruction = subject.model(joined(flat, subject.inputs))[1]
        rows = {
            "spliced": torch.where(ordinary, reconstruction, target),
            "everywhere": reconstruction,
            "zero": torch.where(ordinary, 0.0, target),
            "mean": torch.where(ordinary, subject.mean, target),
        }
        values = {"clean": clean}
        for name, replaced in rows.items():
            parts = replaced.split([site.width or 0 for site in subject.targets], dim=1)
            fixed = {
                site: lambda activation, part=part: part.to(activation.dtype).view_as(activation)
                for site, part in zip(subject.targets, parts, strict=True)
            }
            with splice(model, fixed):
                values[name] = log_probabilities()
        losses = {name: -log_p.gather(1, words[:, None]).squeeze(1) for name, log_p in values.items()}
        kl = (clean.exp() * (clean - values["spliced"])).sum(-1)
        sums.add(contexts.document[row, column], losses | {"kl": kl, "count": torch.ones(len(row))})
    return sums.sums
