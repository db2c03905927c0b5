"""`sae choose-l0`: the flags; what they do is in `sae.cli.l0`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.cli.training import Sweep
from sae.config import L0Config


@dataclass(frozen=True, kw_only=True)
class ChooseL0:
    """Say what dictionaries of several L0 tell about the right one: where seeds agree, where atoms are least alike.

    `sae choose-l0 RUN RUN RUN ...` compares runs that differ in L0 and seed alone. With the flags of `sae sweep`
    (--model, --dataset, --layer, --k 8,16,32,64, --out) it trains them first, on one harvest, with --seed 0,1 unless
    others are given.
    """

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders: three levels of L0 at least, and two seeds each if possible."""
    config: L0Config = dataclasses.field(default_factory=L0Config)
    sweep: tyro.conf.Suppress[Sweep | None] = None
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.l0 import choose_and_draw, sweep_and_choose
        from sae.evaluation.l0.run import shown

        if self.sweep is not None and self.sweep.dry_run:
            return self.sweep.run()
        if self.sweep is not None:
            report = sweep_and_choose(self.sweep.config.out, self.sweep.members, self.sweep.evaluation())
        else:
            report = choose_and_draw(self.run_folders, self.config)
        return report if self.json else shown(report)
