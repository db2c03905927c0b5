"""The L0 that a statistic prefers among several, how sure that is, and one sentence of advice.

    choice = choose([Level(l0=16.0, dictionaries=(atoms_seed0, atoms_seed1)), Level(l0=32.0, ...), ...])
    choice.l0, choice.low, choice.high, choice.verdicts, choice.advice

In every resample each level's statistic is drawn anew, and the best level noted. Of a level below the best one in 97.5%
of the resamples it is said that its L0 is too low, and likewise too high. Nothing is said where the best level may be
the first or the last one: what lies beyond was not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae.base.tables import number
from sae.config import ConfigError
from sae.evaluation.l0.statistics import Draws, agreement, decoder_cosine

SURE = 0.975
"""Share of the resamples in which a statement must hold."""
FEWEST = 3
"""Levels without which no optimum can lie inside."""
Statistic = Literal["agreement", "decoder_cosine"]
Verdict = Literal["too low", "too high", "fits", "unknown"]


class Level(NamedTuple):
    """Trainings at one L0."""

    l0: float
    """Latents that fire in a token, mean over the seeds."""
    dictionaries: tuple[Tensor, ...]
    """Live atoms [n, d] of each seed."""


class Measured(NamedTuple):
    """A statistic at every level, and what it says."""

    statistic: Statistic
    values: list[float]
    """Mean over the seeds (over their pairs), a level."""
    low: list[float]
    """Of a 95% interval a level."""
    high: list[float]
    best: int
    """The level with the best value."""
    shares: list[float]
    """Share of the resamples in which each level is the best."""

    @property
    def inside(self) -> bool:
        """Whether the best level is neither the first nor the last, in 97.5% of the resamples."""
        return 0 < self.best < len(self.values) - 1 and self.shares[0] + self.shares[-1] <= 1 - SURE

    def at(self, place: int) -> dict[str, float]:
        """A level's value with its interval, and the share of the resamples in which it is the best."""
        names = ("value", "low", "high", "best")
        return dict(zip(names, (c[place] for c in (self.values, self.low, self.high, self.shares)), strict=True))

    def verdicts(self) -> list[Verdict]:
        """What is said of each level."""
        if not self.inside:
            return ["unknown"] * len(self.values)
        below = [sum(self.shares[:level]) for level in range(len(self.values) + 1)]
        return [
            "too low" if 1 - below[level + 1] >= SURE else "too high" if below[level] >= SURE else "fits"
            for level in range(len(self.values))
        ]


class Choice(NamedTuple):
    """The L0 that the data prefer."""

    levels: list[float]
    """Measured L0, ascending."""
    decided_by: Statistic
    """Seed agreement where every level has two seeds, else decoder cosine. Cosine decides too where the seeds agree
    most at an inner level, but not surely, and cosine is surely best at a level that the seeds leave open."""
    measured: dict[Statistic, Measured]
    l0: float | None
    """The best level; None where it may lie outside the range."""
    low: float | None
    """The right L0 lies above this level, of those measured."""
    high: float | None
    """And below this one."""
    verdicts: list[Verdict]
    """Of each level."""
    advice: str
    """One or two sentences."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; "levels" has a row for each, with the share of the resamples in which it is the best."""
        rows = [
            {
                "l0": l0,
                **{
                    name: {
                        "value": m.values[place],
                        "low": m.low[place],
                        "high": m.high[place],
                        "best": m.shares[place],
                    }
                    for name, m in self.measured.items()
                },
                "verdict": self.verdicts[place],
            }
            for place, l0 in enumerate(self.levels)
        ]
        head = {name: getattr(self, name) for name in ("advice", "l0", "low", "high", "decided_by")}
        return {**head, "levels": rows}


def choose(levels: Sequence[Level], *, resamples: int = 1000, seed: int = 0) -> Choice:
    """Judge levels by decoder cosine and, where each has two seeds or more, by the agreement of seeds.

    Raises:
        ConfigError: fewer than three levels, two of the same L0, or one without two live atoms.
    """
    levels = sorted(levels, key=lambda level: level.l0)
    _check(levels)
    measured: dict[Statistic, Measured] = {"decoder_cosine": _measure("decoder_cosine", levels, resamples, seed)}
    if all(len(level.dictionaries) > 1 for level in levels):
        measured["agreement"] = _measure("agreement", levels, resamples, seed)
    decided_by = _decides(measured)
    chosen = measured[decided_by]
    verdicts, l0s = chosen.verdicts(), [level.l0 for level in levels]
    l0 = low = high = None
    if chosen.inside:
        fitting = [place for place, verdict in enumerate(verdicts) if verdict == "fits"]
        l0, low, high = l0s[chosen.best], l0s[max(0, fitting[0] - 1)], l0s[min(len(l0s) - 1, fitting[-1] + 1)]
    advice = _advice(l0s, measured, decided_by)
    return Choice(l0s, decided_by, measured, l0, low, high, verdicts, advice)


def _decides(measured: dict[Statistic, Measured]) -> Statistic:
    """The statistic whose verdicts count; see `Choice.decided_by`."""
    if "agreement" not in measured:
        return "decoder_cosine"
    seeds, cosine = measured["agreement"], measured["decoder_cosine"]
    left_open = not seeds.inside and 0 < seeds.best < len(seeds.values) - 1
    return "decoder_cosine" if left_open and cosine.inside and seeds.shares[cosine.best] > 1 - SURE else "agreement"


def _check(levels: Sequence[Level]) -> None:
    l0s = [round(level.l0, 3) for level in levels]
    if len(levels) < FEWEST:
        raise ConfigError(
            f"choose-l0: {len(levels)} levels of L0 ({', '.join(map(number, l0s))}): expected three or more, so that "
            "an optimum can lie inside; train more with other --k"
        )
    if len(set(l0s)) < len(l0s):
        raise ConfigError(f"choose-l0: two levels have the same L0 ({', '.join(map(number, l0s))})")
    for level in levels:
        if min(len(atoms) for atoms in level.dictionaries) < 2:
            raise ConfigError(f"choose-l0: at L0 {number(level.l0)} a run has fewer than two live latents")


def _measure(statistic: Statistic, levels: Sequence[Level], resamples: int, seed: int) -> Measured:
    drawn = [_draws(statistic, level, place, resamples, seed) for place, level in enumerate(levels)]
    table = torch.stack([draws.resampled for draws in drawn])
    sign = 1 if statistic == "agreement" else -1
    winners = (sign * table).argmax(0)
    shares = torch.bincount(winners, minlength=len(levels)).double() / resamples
    bounds = torch.quantile(table, torch.tensor([0.025, 0.975], dtype=table.dtype), dim=1)
    values = [draws.value for draws in drawn]
    best = max(range(len(levels)), key=lambda place: sign * values[place])
    return Measured(statistic, values, bounds[0].tolist(), bounds[1].tolist(), best, shares.tolist())


def _draws(statistic: Statistic, level: Level, place: int, resamples: int, seed: int) -> Draws:
    """A level's statistic, the mean over its seeds or pairs of seeds; seeds and latents are both drawn anew."""
    count = len(level.dictionaries)
    places = list(itertools.combinations(range(count), 2)) if statistic == "agreement" else [(n,) for n in range(count)]
    measure = agreement if statistic == "agreement" else decoder_cosine
    parts = [
        measure(*(level.dictionaries[n] for n in part), resamples=resamples, seed=seed + number)
        for number, part in enumerate(places)
    ]
    table = torch.stack([part.resampled for part in parts])
    weights = _seed_weights(places, count, resamples, 1_000_003 * seed + place)
    return Draws(sum(part.value for part in parts) / len(parts), (weights * table).sum(0) / weights.sum(0))


def _seed_weights(places: Sequence[tuple[int, ...]], count: int, resamples: int, seed: int) -> Tensor:
    """How much each part counts in each resample of `count` seeds, [parts, resamples]: its seeds' draws multiplied.

    Resamples in which no part counts (of pairs, if one seed was drawn each time) are drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(len(places), resamples, dtype=torch.float64)
    while len(empty := (weights.sum(0) == 0).nonzero().squeeze(1)):
        drawn = torch.randint(count, (len(empty), count), generator=generator)
        times = torch.nn.functional.one_hot(drawn, count).sum(1).double()
        weights[:, empty] = torch.stack([times[:, list(part)].prod(1) for part in places])
    return weights


_SAID = {
    "agreement": ("seeds agree most", "MCC"),
    "decoder_cosine": ("atoms are most orthogonal", "mean |cosine|"),
}


def _advice(l0s: list[float], measured: dict[Statistic, Measured], decided_by: Statistic) -> str:
    chosen = measured[decided_by]
    said, unit_ = _SAID[decided_by]
    best = chosen.best
    head = f"{said[0].upper()}{said[1:]} at L0 {number(l0s[best])} ({unit_} {number(chosen.values[best])})"
    if not chosen.inside:
        share = chosen.shares[0] + chosen.shares[-1]
        edge = "below" if chosen.shares[0] >= chosen.shares[-1] else "above"
        where = l0s[0] if edge == "below" else l0s[-1]
        return (
            f"{head}, but in {share:.0%} of the resamples the best L0 is an end of the range measured: no right L0 can "
            f"be given. It may lie {edge} {number(where)}; measure there too, or this statistic does not tell here."
        )
    verdicts = chosen.verdicts()
    fits, low, high = (
        [number(l0) for l0, verdict in zip(l0s, verdicts, strict=True) if verdict == wanted]
        for wanted in ("fits", "too low", "too high")
    )
    between = f"between {low[-1] if low else number(l0s[0])} and {high[0] if high else number(l0s[-1])}"
    alike = f" ({' and '.join(fits)} cannot be told apart)" if len(fits) > 1 else ""
    text = f"{head}; of the levels measured the right L0 lies {between}{alike}, with {SURE:.1%} confidence each way."
    if "agreement" not in measured:
        return f"{text} With a second seed a level, the agreement of seeds decides, which finds known L0s more often."
    if decided_by == "decoder_cosine":
        seeds = number(l0s[measured["agreement"].best])
        return f"{text} The seeds agree most at {seeds}, but not surely: this statistic decides among what they leave."
    other = measured["decoder_cosine"]
    if verdicts[other.best] != "fits":
        text += f" Decoder cosine is least at {number(l0s[other.best])} instead; where the two differ, trust the seeds."
    return text
