"""The chapter's table of generative models, and the rules by which measured numbers agree with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.base.tables import number
from sae.book.chapter.generative_models import Measured
from sae.book.chapter.measure import over_seeds

SLOWER = 5.0  # times slower than the others counts as "slow"
NAN = float("nan")


class Numbers(NamedTuple):
    """One family over its seeds; NaN if no seed gave finite samples."""

    frechet: list[float]
    """Of every seed."""
    sharpness: float
    """Mean over seeds, as the next two."""
    recall: float
    per_second: float
    failed: int
    """Seeds."""
    encodes: bool

    @classmethod
    def of(cls, seeds: Sequence[Measured]) -> Numbers:
        """From the measures of every seed."""
        columns = _columns(seeds)
        means = {name: _mean(columns[name]) for name in ("sharpness", "recall", "per_second")}
        return cls(frechet=columns["frechet"], failed=_failed(seeds), encodes=seeds[0].encodes, **means)

    @property
    def distance(self) -> float:
        """Mean Fréchet distance."""
        return _mean(self.frechet)

    @property
    def spread(self) -> float:
        """Greatest less least distance over seeds, by the mean."""
        return float((np.nanmax(self.frechet) - np.nanmin(self.frechet)) / self.distance)


def verdicts(families: Mapping[str, Numbers]) -> list[dict[str, str]]:
    """The chapter's rows, each with a rule, what was measured, and whether the chapter agrees with it.

    Args:
        families: of "VAE", "GAN" and "diffusion" at least.
    """
    vae, gan, diffusion = (families[name] for name in ("VAE", "GAN", "diffusion"))
    three = {"VAE": vae, "GAN": gan, "diffusion": diffusion}

    def listed(value: Callable[[Numbers], str]) -> str:
        return ", ".join(f"{name} {value(one)}" for name, one in three.items())

    several = len(vae.frechet) > 1
    harder = gan.failed > max(vae.failed, diffusion.failed)
    even = gan.failed == max(vae.failed, diffusion.failed)
    wider = even and several and gan.spread > max(vae.spread, diffusion.spread)
    slow = SLOWER * diffusion.per_second < min(vae.per_second, gan.per_second)
    return [
        {
            "property": "quality",
            "chapter": "VAE medium, GAN high, diffusion highest",
            "rule": "Fréchet distance falls in this order",
            "measured": listed(lambda one: number(one.distance)),
            "agrees": _yes(diffusion.distance < gan.distance < vae.distance),
        },
        {
            "property": "sharp samples",
            "chapter": "VAE blurry, GAN sharp",
            "rule": "share of high frequencies over the data's: the VAE's is below 1 and below the GAN's",
            "measured": listed(lambda one: number(one.sharpness)),
            "agrees": _yes(vae.sharpness < min(1.0, gan.sharpness)),
        },
        {
            "property": "training",
            "chapter": "VAE stable, GAN hard, diffusion stable",
            "rule": "most failed seeds, or else the widest spread of distances, are the GAN's",
            "measured": listed(lambda one: f"{one.failed} failed, spread {number(one.spread)}"),
            "agrees": _yes(harder or wider) if several else "one seed does not tell",
        },
        {
            "property": "encoder",
            "chapter": "VAE yes, GAN no, diffusion no",
            "rule": "by construction",
            "measured": listed(lambda one: _yes(one.encodes)),
            "agrees": _yes(vae.encodes and not gan.encodes and not diffusion.encodes),
        },
        {
            "property": "speed",
            "chapter": "VAE fast, GAN fast, diffusion slow",
            "rule": f"diffusion gives less than 1/{SLOWER:g} of the others' samples/s",
            "measured": listed(lambda one: number(one.per_second)),
            "agrees": _yes(slow),
        },
        {
            "property": "mode coverage",
            "chapter": "VAE good, GAN poor, diffusion good",
            "rule": "the GAN's recall is the least",
            "measured": listed(lambda one: number(one.recall)),
            "agrees": _yes(gan.recall < min(vae.recall, diffusion.recall)),
        },
    ]


def summary(families: Mapping[str, Sequence[Measured]], seen: Mapping[str, int]) -> list[dict[str, Any]]:
    """A table: every family over its seeds, means with their intervals, and the training images that it has seen."""
    rows = []
    for name, seeds in families.items():
        columns = _columns(seeds)
        modes = [m.score.modes for m in seeds if m.score.modes is not None]
        rows.append(
            {
                "model": name,
                "Fréchet": _range(columns["frechet"]),
                "precision": _range(columns["precision"]),
                "recall": _range(columns["recall"]),
                "high frequencies": _range(columns["sharpness"]),
                "classes": " ".join(f"{m.hit}/{m.of}" for m in modes),
                "KL of classes": _mean([m.divergence for m in modes]),
                "calls a sample": seeds[0].evaluations,
                "samples/s": _range(columns["per_second"]),
                "parameters": seeds[0].parameters,
                "images seen": seen[name],
                "training s": _mean(columns["seconds"]),
                "failed": f"{_failed(seeds)} of {len(seeds)}",
                "encoder": seeds[0].encodes,
            }
        )
    return rows


def _columns(seeds: Sequence[Measured]) -> dict[str, list[float]]:
    """Every measure by seed; NaN for missing ones."""
    numbers = [m.numbers() for m in seeds]
    return {name: [NAN if row[name] is None else row[name] for row in numbers] for name in numbers[0]}


def _failed(seeds: Sequence[Measured]) -> int:
    return sum(bool(m.score.failure) for m in seeds)


def _range(values: Sequence[float]) -> Any:
    """Mean of the finite values with its interval over seeds; None if there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return over_seeds(finite) if finite else None


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else NAN


def _yes(so: bool) -> str:
    return "yes" if so else "no"
