"""What a run's language model computes at the autoencoder's sites when it reads short texts.

    rows = read(run, lm, ["The river ran past.", ...], tokens=48)
    pooled(basis, rows)                         # mean of z over each text's tokens, [texts, F]

A text is read by itself, behind what begins every segment in the run's harvest. Those first tokens are left out, and so
are attention sinks, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sae.config import ConfigError
from sae.data.packing import padding_token
from sae.evaluation.semantic.bases import CHUNK, Basis
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel
from sae.runs.text import Run, joined

TEXTS_AT_ONCE = 16


class TextRows(NamedTuple):
    """Rows of tokens, text after text."""

    inputs: Tensor
    """What the autoencoder reads [N, d], float32 on the CPU."""
    targets: Tensor
    """What its reconstruction takes the place of [N, d_out]; the same tensor but for transcoders."""
    starts: np.ndarray
    """The first row of every text, and N behind the last, int64 [texts + 1]."""

    def of(self, texts: np.ndarray) -> TextRows:
        """The rows of some texts, given by their numbers."""
        kept = np.concatenate([np.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in texts])
        inputs = self.inputs[kept]
        targets = inputs if self.targets is self.inputs else self.targets[kept]
        return TextRows(inputs, targets, np.r_[0, np.diff(self.starts)[texts].cumsum()])


def token_ids(lm: LanguageModel, text: str) -> list[int]:
    """A text's tokens, without special ones."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def padded(lm: LanguageModel, texts: Sequence[list[int]]) -> dict[str, Tensor]:
    """The model's inputs for texts of several lengths, each behind the beginning, padded on the right."""
    begun = [[*lm.beginning, *ids] for ids in texts]
    longest = max(map(len, begun))
    ids = torch.full((len(begun), longest), padding_token(lm.tokenizer), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, of_text in enumerate(begun):
        ids[row, : len(of_text)] = torch.tensor(of_text)
        mask[row, : len(of_text)] = 1
    return {"input_ids": ids.to(lm.device), "attention_mask": mask.to(lm.device)}


def read(
    run: Run,
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    tokens: int,
    last_only: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> TextRows:
    """One forward over every text.

    Args:
        run: an opened run of the language model.
        lm: that model.
        texts: short ones.
        tokens: of each text, at most.
        last_only: keep each text's last token alone, sink or not.
        advance: called with the number of texts that were read.

    Raises:
        ConfigError: a text without tokens, or of sinks alone.
    """
    ids = [token_ids(lm, text)[:tokens] for text in texts]
    if (empty := next((i for i, of_text in enumerate(ids) if not of_text), None)) is not None:
        raise ConfigError(f"text {texts[empty]!r}: it has no tokens")
    limits: dict[str, float] = {} if last_only else run.record["harvest"]["norm_limits"]
    # texts of like lengths share a forward, so that little is padded
    order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
    inputs: list[Tensor] = [torch.empty(0)] * len(texts)
    targets = list(inputs)
    for first in range(0, len(order), TEXTS_AT_ONCE):
        batch = order[first : first + TEXTS_AT_ONCE]
        activations = harvest_forward(lm.model, padded(lm, [ids[i] for i in batch]), run.sites)
        for row, i in enumerate(batch):
            begin, end = len(lm.beginning), len(lm.beginning) + len(ids[i])
            part = {name: a[row, end - 1 if last_only else begin : end].cpu() for name, a in activations.items()}
            usable = torch.ones(len(next(iter(part.values()))), dtype=torch.bool)
            for name, limit in limits.items():
                if name in part:
                    usable &= part[name].float().norm(dim=1) <= limit
            if not usable.any():
                raise ConfigError(f"text {texts[i]!r}: all of its tokens are attention sinks")
            part = {name: a[usable] for name, a in part.items()}
            inputs[i] = joined(part, run.inputs)
            targets[i] = joined(part, run.targets)
        advance(len(batch))
    starts = np.r_[0, np.cumsum([len(rows) for rows in inputs])]
    everything = torch.cat(inputs)
    return TextRows(everything, everything if run.targets == run.inputs else torch.cat(targets), starts)


def pooled(basis: Basis, rows: TextRows) -> np.ndarray:
    """Mean of z over the tokens of every text, float32 [texts, F]."""
    size = np.diff(rows.starts)
    result = np.empty((len(size), len(basis.atoms)), dtype=np.float32)
    first = 0
    while first < len(size):
        # whole texts, about CHUNK rows at a time
        last = max(first + 1, int(np.searchsorted(rows.starts, rows.starts[first] + CHUNK, side="right")) - 1)
        part = slice(rows.starts[first], rows.starts[last])
        z = basis.encode(rows.inputs[part], rows.targets[part])
        here = size[first:last]
        mean = sparse.csr_array(
            (np.repeat(1 / here, here), np.arange(here.sum()), np.r_[0, here.cumsum()]), shape=(len(here), here.sum())
        )
        average = mean @ z
        result[first:last] = average.toarray() if sparse.issparse(average) else average
        first = last
    return result
