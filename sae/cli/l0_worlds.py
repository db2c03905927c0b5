"""`sae bench l0`: whether `sae choose-l0` finds the L0 of synthetic worlds, where it is known.

    rows = measure_choices(worlds=["correlated", "noisy"], seeds=2, draws=10)

On each draw of a world, autoencoders are trained at half, 0.7, once, 1.4 and twice its true L0, with several seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from sae.cli.recovery import COURSES, Course, Views, train_on
from sae.config import ConfigError, SAEConfig, unknown_choice
from sae.evaluation.l0.choice import Choice, Level, Statistic, choose
from sae.evaluation.synthetic.metrics import RECOVERED, match
from sae.evaluation.synthetic.worlds import WORLDS

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Multiples of the true L0 at which autoencoders are trained, rounded to whole k."""
HELDOUT_TOKENS = 8192
STATISTICS: tuple[Statistic | None, ...] = (None, "agreement", "decoder_cosine")
"""Whose verdicts are counted: those of the choice, or those of one statistic alone."""


class Trial(NamedTuple):
    """One draw of a world."""

    true: float
    """Its L0, for a dictionary of the course's width."""
    choice: Choice
    recovery: list[float]
    """MCC with the true features at each level, mean over the seeds."""


def trial(
    world: str,
    *,
    draw: int,
    seeds: int,
    factors: Sequence[float] = FACTORS,
    course: Course | None = None,
    variant: str = "batchtopk",
    resamples: int = 500,
) -> Trial:
    """Train on one draw of a world at several multiples of its L0, and let `choose` judge them.

    Raises:
        ConfigError: an unknown world.
    """
    if world not in WORLDS:
        raise unknown_choice("--worlds", world, WORLDS)
    course, features = course or COURSES[world], WORLDS[world].features
    true = WORLDS[world].l0_within(course.width) if course.width < features else WORLDS[world].l0
    views = Views(world, variant, draw)
    x = torch.cat([sample.x for sample in views.data.heldout(HELDOUT_TOKENS)])
    levels, recovery = [], []
    for k in sorted({max(1, round(true * factor)) for factor in factors}):
        atoms, l0s, mccs = [], [], []
        for seed in range(seeds):
            # unrelated to the draw's own seed
            model = train_on(
                views, SAEConfig(variant=variant, width=course.width, k=k), course, 1000 * (seed + 1) + draw
            )
            with torch.no_grad():
                fired = model.encode(x).to_dense() != 0
            atoms.append(model.dictionary.W.detach()[fired.any(0)])
            l0s.append(fired.sum().item() / len(x))
            mccs.append(match(model.dictionary.W, views.features).mcc)
        levels.append(Level(statistics.fmean(l0s), tuple(atoms)))
        recovery.append(statistics.fmean(mccs))
    return Trial(true, choose(levels, resamples=resamples, seed=draw), recovery)


def measure_choices(
    *,
    worlds: Sequence[str],
    seeds: int,
    draws: int,
    first_draw: int = 5,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """How often half and twice the true L0 are noticed on each world, in draws numbered from `first_draw`.

    Returns:
        JSON values: "rows", for each world by `choose` and by each statistic alone. "low" and "high" are the draws in
        which the lowest level is said to be too low and the highest too high, "false" those in which the true L0 is
        said to be wrong; "ratio" is the geometric mean of the best level over the true L0. "recovered" are the draws in
        which training at the true L0 finds the true features (MCC of 0.9 or more): elsewhere no dictionary there is
        right, and a statistic of dictionaries has nothing to notice.
    """
    for world in worlds:
        if world not in WORLDS:
            raise unknown_choice("--worlds", world, WORLDS)
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds}: expected 2 or more, whose agreement is measured")
    rows = []
    for world in worlds:
        trials = []
        for draw in range(first_draw, first_draw + draws):
            trials.append(trial(world, draw=draw, seeds=seeds))
            tell(f"{world} {draw}: {', '.join(trials[-1].choice.verdicts)}")
        for statistic in STATISTICS:
            rows.append({"world": world, "by": statistic or "choose-l0", **_counts(trials, statistic)})
            counts = ", ".join(f"{name} {rows[-1][name]}" for name in ("low", "high", "false", "recovered"))
            tell(f"{world}, {rows[-1]['by']}: {counts} of {draws}, best / true {rows[-1]['ratio']:.2f}")
    return {"bench": "l0", "seeds": seeds, "draws": draws, "first_draw": first_draw, "rows": rows}


def _counts(trials: Sequence[Trial], statistic: Statistic | None) -> dict[str, Any]:
    low = high = false = recovered = 0
    logs = []
    for true, choice, recovery in trials:
        measured = choice.measured[statistic or choice.decided_by]
        verdicts = measured.verdicts()
        at_truth = min(range(len(choice.levels)), key=lambda place: abs(math.log(choice.levels[place] / true)))
        low += verdicts[0] == "too low"
        high += verdicts[-1] == "too high"
        false += verdicts[at_truth] in ("too low", "too high")
        recovered += recovery[at_truth] >= RECOVERED
        logs.append(math.log(choice.levels[measured.best] / true))
    true = trials[0].true
    return {
        "true_l0": true,
        "low": low,
        "high": high,
        "false": false,
        "recovered": recovered,
        "ratio": math.exp(statistics.fmean(logs)),
    }
