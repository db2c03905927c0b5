"""What the chapter's table says of generative models, and by which rule a measured number says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.base.tables import number
from sae.book.chapter.generative_models import Measured
from sae.book.chapter.measure import over_seeds

SLOWER = 5.0  # times slower than the others: "slow" against "fast"
NAN = float("nan")


class Numbers(NamedTuple):
    """One family over its seeds; NaN where no seed gave finite samples."""

    frechet: list[float]
    """Of every seed."""
    precision: float
    """Means over seeds, as all that follow."""
    sharpness: float
    recall: float
    per_second: float
    failed: int
    """Seeds."""
    encodes: bool

    @classmethod
    def of(cls, found: Sequence[Measured]) -> Numbers:
        """From what was measured, a seed each."""
        scores = [m.score for m in found]
        return cls(
            frechet=[NAN if s.frechet is None else s.frechet.distance for s in scores],
            precision=_mean([NAN if s.manifolds is None else s.manifolds.precision for s in scores]),
            sharpness=_mean([NAN if m.sharpness is None else m.sharpness for m in found]),
            recall=_mean([NAN if s.manifolds is None else s.manifolds.recall for s in scores]),
            per_second=_mean([m.per_second for m in found]),
            failed=sum(bool(s.failure) for s in scores),
            encodes=found[0].encodes,
        )

    @property
    def distance(self) -> float:
        """Mean Fréchet distance."""
        return _mean(self.frechet)

    @property
    def spread(self) -> float:
        """Greatest less least distance over seeds, by the mean."""
        return float((np.nanmax(self.frechet) - np.nanmin(self.frechet)) / self.distance)


def verdicts(found: Mapping[str, Numbers]) -> list[dict[str, str]]:
    """The chapter's five rows, each with what was measured and whether it is so; the rules are in the rows.

    Args:
        found: of "VAE", "GAN" and "diffusion" at least.
    """
    vae, gan, diffusion = (found[name] for name in ("VAE", "GAN", "diffusion"))
    three = {"VAE": vae, "GAN": gan, "diffusion": diffusion}

    def said(value: Any) -> str:
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
            "measured": said(lambda one: number(one.distance)),
            "agrees": _yes(diffusion.distance < gan.distance < vae.distance),
        },
        {
            "property": "sharp samples",
            "chapter": "VAE blurry, GAN sharp",
            "rule": "share of high frequencies over the data's: the VAE's is below 1 and below the GAN's",
            "measured": said(lambda one: number(one.sharpness)),
            "agrees": _yes(vae.sharpness < min(1.0, gan.sharpness)),
        },
        {
            "property": "training",
            "chapter": "VAE stable, GAN hard, diffusion stable",
            "rule": "most failed seeds, or else the widest spread of distances, are the GAN's",
            "measured": said(lambda one: f"{one.failed} failed, spread {number(one.spread)}"),
            "agrees": _yes(harder or wider) if several else "one seed does not tell",
        },
        {
            "property": "encoder",
            "chapter": "VAE yes, GAN no, diffusion no",
            "rule": "by construction",
            "measured": said(lambda one: _yes(one.encodes)),
            "agrees": _yes(vae.encodes and not gan.encodes and not diffusion.encodes),
        },
        {
            "property": "speed",
            "chapter": "VAE fast, GAN fast, diffusion slow",
            "rule": f"diffusion gives less than 1/{SLOWER:g} of the others' samples/s",
            "measured": said(lambda one: number(one.per_second)),
            "agrees": _yes(slow),
        },
        {
            "property": "mode coverage",
            "chapter": "VAE good, GAN poor, diffusion good",
            "rule": "the GAN's recall is the least",
            "measured": said(lambda one: number(one.recall)),
            "agrees": _yes(gan.recall < min(vae.recall, diffusion.recall)),
        },
    ]


def summary(found: Mapping[str, Sequence[Measured]], seen: Mapping[str, int]) -> list[dict[str, Any]]:
    """A table: every family over its seeds, means with their intervals, and the training images that it has seen."""
    rows = []
    for name, seeds in found.items():
        scores = [m.score for m in seeds]
        modes = [s.modes for s in scores if s.modes is not None]
        rows.append(
            {
                "model": name,
                "Fréchet": _range([NAN if s.frechet is None else s.frechet.distance for s in scores]),
                "precision": _range([NAN if s.manifolds is None else s.manifolds.precision for s in scores]),
                "recall": _range([NAN if s.manifolds is None else s.manifolds.recall for s in scores]),
                "high frequencies": _range([NAN if m.sharpness is None else m.sharpness for m in seeds]),
                "classes": " ".join(f"{m.hit}/{m.of}" for m in modes),
                "KL of classes": _mean([m.divergence for m in modes]),
                "calls a sample": seeds[0].evaluations,
                "samples/s": _range([m.per_second for m in seeds]),
                "parameters": seeds[0].parameters,
                "images seen": seen[name],
                "training s": _mean([m.seconds for m in seeds]),
                "failed": f"{sum(bool(s.failure) for s in scores)} of {len(scores)}",
                "encoder": seeds[0].encodes,
            }
        )
    return rows


def _range(values: Sequence[float]) -> Any:
    """Mean of the finite ones with its interval over seeds; None where there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return over_seeds(finite) if finite else None


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else NAN


def _yes(so: bool) -> str:
    return "yes" if so else "no"
