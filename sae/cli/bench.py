"""`sae bench`: kernels, steps, the recovery of known features, the choice of L0."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from sae.cli.options import Json
from sae.config import Device, refuse_ignored

BENCHED = (
    "topk",
    "batchtopk",
    "matryoshka",
    "temporal",
    "relu",
    "relu:penalty=tanh",
    "p_anneal",
    "gated",
    "jumprelu",
    "jumprelu:recipe=anthropic",
    "jumprelu:recipe=target",
    "transcoder",
    "skip_transcoder",
    "crosscoder",
    "matching_pursuit",
)


_SHAPE = ("tokens", "d", "k", "rounds", "device")
READ_BY_BENCHES: dict[str, tuple[str, ...]] = {
    "kernels": (*_SHAPE, "width"),
    "step": (*_SHAPE, "width"),
    "curve": _SHAPE,
    "variants": (*_SHAPE, "width", "variants"),
    "recovery": ("variants", "worlds", "seeds", "l0_factor"),
    "l0": ("worlds", "seeds", "draws", "first_draw"),
}
"""Bench -> the flags that it reads."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time sparse ops and training steps against lower bounds, or measure the recovery of known features."""

    what: Annotated[
        tyro.conf.Positional[Literal["kernels", "step", "curve", "variants", "recovery", "l0"]],
        tyro.conf.arg(metavar="WHAT"),
    ]
    """kernels (op by op), step (a whole TopK step), curve (the step over the number of latents), variants (every
    variant's step), recovery (every variant on synthetic worlds), or l0 (whether `sae choose-l0` finds their L0)."""
    variants: str = ",".join(BENCHED)
    """variants, recovery: which variants, with commas; a variant's settings follow a colon."""
    worlds: str = "easy16,superposed,correlated,zipf,noisy,hierarchical,deep"
    """recovery, l0: which synthetic worlds."""
    seeds: int = 3
    """recovery: number of seeds, each with its own world and training; l0: trainings at each L0 of a world."""
    draws: int = 10
    """l0: number of draws of each world."""
    first_draw: int = 5
    """l0: number of the first draw. The rule of `sae choose-l0` was shaped on draws 0 to 4."""
    l0_factor: float = 1.0
    """recovery: the target L0, in multiples of the true one."""
    tokens: int = 2048
    """Tokens a batch."""
    d: int = 576
    """Width of the activations."""
    width: int = 9216
    """Latents; the curve goes from 4k to 131k."""
    k: int = 32
    """Latents active a token."""
    rounds: int = 9
    """Interleaved rounds; the medians are reported."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.base.device import pick_device

        common = ("what", "json")
        read = (*common, *READ_BY_BENCHES[self.what])
        names = [field.name for field in dataclasses.fields(self) if field.name not in read]
        refuse_ignored(self, dict.fromkeys(names, f"sae bench {self.what} does not read it"))
        if self.what == "l0":
            from sae.base.progress import Progress
            from sae.cli.l0_worlds import measure_choices

            with Progress() as progress:
                numbers = {"seeds": self.seeds, "draws": self.draws, "first_draw": self.first_draw}
                return measure_choices(worlds=self.worlds.split(","), **numbers, tell=progress.say)
        if self.what == "recovery":
            from sae.base.progress import Progress
            from sae.cli.recovery import measure_recovery

            with Progress() as progress:
                names = {"variants": self.variants.split(","), "worlds": self.worlds.split(",")}
                return measure_recovery(**names, seeds=self.seeds, l0_factor=self.l0_factor, tell=progress.say)
        from sae_kernels.bench.kernels import measure_kernels
        from sae_kernels.bench.step import measure_curve, measure_step

        shape: dict[str, Any] = {"tokens": self.tokens, "d": self.d, "k": self.k, "rounds": self.rounds}
        shape["device"] = pick_device(self.device).type
        if self.what == "variants":
            from sae.training.bench import measure_variants

            return measure_variants(self.variants.split(","), width=self.width, **shape)
        if self.what == "curve":
            return measure_curve(**shape)
        return (measure_kernels if self.what == "kernels" else measure_step)(width=self.width, **shape)
