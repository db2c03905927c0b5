"""`sae bench recovery`: how much of the features behind synthetic data each variant recovers.

rows = measure_recovery(variants=["topk", "matryoshka"], worlds=["easy16", "hierarchical"], seeds=3)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import OptimConfig, SAEConfig, unknown_choice
from sae.data.batching import Batch
from sae.evaluation.synthetic.metrics import Recovery, recovery_metrics
from sae.evaluation.synthetic.sampling import Sample, SyntheticData
from sae.evaluation.synthetic.worlds import WORLDS
from sae.models.autoencoder import Autoencoder
from sae.models.language import VARIANTS, find_variant, recipe_of
from sae.training.loop import train_in_memory
from sae.training.trainer import Trainer

HELDOUT_TOKENS = 20_000


class Course(NamedTuple):
    """How long and how fast a variant is trained on a world; the same for all variants."""

    width: int
    """Latents."""
    steps: int
    lr: float
    batch: int = 512


COURSES = {
    "easy16": Course(32, 800, 1e-2),
    "superposed": Course(256, 1500, 3e-3),
    "correlated": Course(50, 1000, 1e-2, 256),
    "zipf": Course(256, 1500, 3e-3),
    "noisy": Course(256, 1500, 3e-3),
    "hierarchical": Course(512, 2000, 5e-3),
    "deep": Course(170, 1500, 3e-3),
}


def recover(
    variant: str, world: str, *, seed: int, l0_factor: float = 1.0, course: Course | None = None, **settings: Any
) -> Recovery:
    """Train a variant on a world and compare its saved form with the truth.

    Args:
        variant, world: names in `VARIANTS` and `WORLDS`.
        seed: of the world's features and samples and of the training.
        l0_factor: the L0 asked of the variant, in multiples of the world's own.
        course: by default the world's.
        settings: further fields of SAEConfig.

    Raises:
        ConfigError: an unknown name.
    """
    if world not in WORLDS:
        raise unknown_choice("--worlds", world, WORLDS)
    course = course or COURSES[world]
    true = WORLDS[world].l0_within(course.width) if course.width < WORLDS[world].features else WORLDS[world].l0
    asked = l0_factor * true
    views = Views(world, variant, seed)
    sae = SAEConfig(variant=variant, width=course.width, k=max(1, round(asked)), **settings)
    if find_variant(sae).penalty(sae) is not None or sae.recipe == "target":
        sae = SAEConfig(variant=variant, width=course.width, k=sae.k, l0_target=asked, **settings)
    heldout = (views.seen(sample) for sample in views.data.heldout(HELDOUT_TOKENS))
    return recovery_metrics(train_on(views, sae, course, seed), views.features, heldout)


def train_on(views: Views, sae: SAEConfig, course: Course, seed: int) -> Autoencoder:
    """The saved form of an autoencoder trained on a world's view; `seed` is that of the training."""
    trainer = Trainer(
        recipe_of(sae, views.site_widths, views.target_widths),
        OptimConfig(lr=course.lr),
        steps=course.steps,
        dead_after=max(1, course.steps * course.batch // 10),
        auxk=max(1, views.target_widths[0] // 2),
        device=torch.device("cpu"),
        seed=seed,
    )
    train_in_memory(trainer, WorldBatches(views, course, pairs=find_variant(sae).neighbours))
    return trainer.finished()


class Views:
    """A world as a variant reads it: itself; two views of the same features side by side; or one view to be turned into
    the other. The second view has feature directions of its own."""

    def __init__(self, world: str, variant: str, seed: int) -> None:
        self.data = SyntheticData(WORLDS[world], seed=seed)
        row = VARIANTS[variant] if variant in VARIANTS else find_variant(SAEConfig(variant=variant))
        self.other = SyntheticData(WORLDS[world], seed=seed + 1_000_000)
        width = WORLDS[world].dim
        self.seen: Callable[[Sample], Sample] = lambda sample: sample
        self.features: Tensor = self.data.features
        self.site_widths = self.target_widths = [width]
        if row.several_sites:
            self.site_widths = self.target_widths = [width, width]
            self.features = torch.cat([self.data.features, self.other.features], 1) / 2**0.5
            self.seen = lambda s: Sample(torch.cat([s.x, self._second(s)], 1), s.codes)
        elif row.transcodes:
            self.features = self.other.features
            self.seen = lambda s: Sample(s.x, s.codes, self._second(s))

    def sample(self, n: int, batch: int) -> Sample:
        """`n` training tokens."""
        return self.seen(self.data.sample(n, batch))

    def _second(self, sample: Sample) -> Tensor:
        return sample.codes.to_dense() @ self.other.features + self.other.bias


class WorldBatches:
    """Training batches drawn from a world; with `pairs`, every token is alone in its document."""

    def __init__(self, views: Views, course: Course, *, pairs: bool) -> None:
        self.views, self.steps, self.batch = views, course.steps, course.batch
        self.alone = torch.zeros(course.batch // 2, dtype=torch.bool) if pairs else None

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the step after `state`, or from the first."""
        for step in range(0 if state is None else state["step"], self.steps):
            sample = self.views.sample(self.batch, step)
            target = sample.x if sample.target is None else sample.target
            yield Batch(sample.x, target, {"step": step + 1}, self.alone)


def measure_recovery(
    *,
    variants: Sequence[str],
    worlds: Sequence[str],
    seeds: int,
    l0_factor: float = 1.0,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Recovery of every variant on every world: means over seeds, and the spread (largest - smallest) of MCC and F1."""
    for world in worlds:
        if world not in WORLDS:
            raise unknown_choice("--worlds", world, WORLDS)
    rows = []
    for world in worlds:
        for spec in variants:
            name, *settings = spec.split(":")
            more: dict[str, Any] = dict(setting.split("=", 1) for setting in settings)
            runs = [recover(name, world, seed=seed, l0_factor=l0_factor, **more) for seed in range(seeds)]
            mean = {field: statistics.fmean(getattr(run, field) for run in runs) for field in Recovery._fields}
            spread = {
                f"{n} spread": max(v) - min(v)
                for n, v in (("mcc", [run.mcc for run in runs]), ("f1", [run.f1 for run in runs]))
            }
            names = ("mcc", "f1", "uniqueness", "fvu", "l0", "true_l0", "dead")
            rows.append({"world": world, "variant": spec, **{name: mean[name] for name in names}, **spread})
            tell(f"{world} {spec}: " + ", ".join(f"{name} {mean[name]:.3f}" for name in ("mcc", "f1", "fvu", "l0")))
    return {"bench": "recovery", "seeds": seeds, "l0_factor": l0_factor, "rows": rows}
