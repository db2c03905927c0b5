"""What is raced: sizes that are the same for all, the entries, and their learning rates. Imports no torch.

Both environments read this file: ours, and that of the other tools.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """Sizes, the same for every entry."""

    model: str = "demo"
    dataset: str = "demo"
    layer: int = 9
    context: int = 256
    """Tokens in one context of the harvest."""
    width: int = 2304
    """Latents."""
    k: int = 32
    batch: int = 512
    """Tokens a step."""
    tokens: int = 200_000
    """Tokens harvested for training; a remainder that fills no batch is left out."""
    passes: int = 1
    """Passes over them."""
    validation: int = 16_384
    """Tokens of further training documents, on which the learning rate is chosen."""
    test: int = 16_384
    """Tokens of held-out documents, on which everything else is measured."""
    downstream: int = 4096
    """Tokens of held-out documents on which reconstructions are spliced into the model."""
    seeds: int = 3
    multiples: tuple[float, ...] = (3.5, 7.0, 14.0)
    """The grid: learning rates as multiples of the entry's published rule."""
    extensions: int = 2
    """How often the grid is continued by a factor of 2 where the best rate lies at its edge."""
    threads: int = 1

    @classmethod
    def read(cls, folder: Path) -> Race:
        """The race that `folder` holds."""
        values = json.loads((folder / "race.json").read_text())
        return cls(**{**values, "multiples": tuple(values["multiples"])})

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**dataclasses.asdict(self), "multiples": list(self.multiples)}


class Entry(NamedTuple):
    """A tool with one of the variants that it recommends."""

    tool: str
    variant: str
    rule: float
    """Published peak learning rate at 16,384 latents; it scales as 1 / sqrt(latents)."""
    divisor: float = 1.0
    """The grid's multiples are divided by this: sign descent needs no larger rate in a short run, Adam does."""

    @property
    def name(self) -> str:
        return f"{self.tool} {self.variant}"

    @property
    def kind(self) -> str:
        """The variant, by whatever optimizer it is trained."""
        return self.variant.split()[0]

    def rate(self, width: int, multiple: float) -> float:
        """Peak learning rate."""
        return multiple / self.divisor * self.rule / math.sqrt(width / 16384)


ADAM, SIGN = 2e-4, 5e-3
TOOLS = {
    "Sparsight": "sparsight",
    "SAELens": "sae-lens",
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
}
"""Tool -> its package, whose version is recorded."""
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("Sparsight", "topk", ADAM),
        Entry("Sparsight", "batchtopk", ADAM),
        Entry("sparsify", "topk (signum)", SIGN, divisor=14.0),
        Entry("sparsify", "topk (adam)", ADAM),
        Entry("dictionary_learning", "topk", ADAM),
        Entry("SAELens", "topk", ADAM),
        Entry("dictionary_learning", "batchtopk", ADAM),
        Entry("SAELens", "batchtopk", ADAM),
    )
}


class Course(NamedTuple):
    """Shares of a run that every tool is given alike; the tools' own numbers are for runs of 10^5 steps and more."""

    steps: int
    batch: int

    @property
    def warmup(self) -> int:
        """Steps over which the rate rises: a twentieth."""
        return max(1, round(0.05 * self.steps))

    @property
    def decay(self) -> int:
        """Steps over which the rate falls to zero at the end: a fifth."""
        return max(1, round(0.2 * self.steps))

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent counts as dead: a tenth of the run."""
        return max(1, self.steps * self.batch // 10)

    @property
    def threshold_window(self) -> int:
        """Steps over which a running threshold of BatchTopK averages: a twentieth."""
        return max(2, round(0.05 * self.steps))


class Member(NamedTuple):
    """One training run."""

    entry: str
    seed: int
    multiple: float

    @property
    def name(self) -> str:
        """Of its folder."""
        plain = self.entry.lower().replace(" ", "-").replace("(", "").replace(")", "")
        return f"{plain}-{self.multiple:g}-seed{self.seed}"

    @classmethod
    def read(cls, text: str) -> Member:
        """From the command line."""
        return cls(*json.loads(text))
