"""`sae train` and `sae sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tyro

from sae.cli.options import Json
from sae.config import EvalConfig, RunConfig, TensorTrainConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train an autoencoder on a model's activations, or with --data on activations or images that are there already.

    --data FILE reads activations of any model from .safetensors, .npy or .parquet; --data NAME reads images, as
    `sae image train` does. `sae train --data X --help` shows the flags of each.
    """

    config: TrainConfig
    dry_run: bool = False
    """Print sites, shapes, steps, memory, disk and time; train nothing, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        return run_training(self.config, dry_run=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class TensorTrain:
    """Train an autoencoder on activations of any model: a .safetensors, .npy or .parquet file, or a folder of such."""

    config: TensorTrainConfig
    dry_run: bool = False
    """Print shapes, steps, memory, disk and time; keep no training, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        return run_training(self.config, dry_run=self.dry_run)


def run_training(config: RunConfig, *, dry_run: bool) -> dict[str, Any]:
    """Train, or show what training would do."""
    if not dry_run:
        from sae.training.run import train

        return train(config).to_json()
    from sae.base.progress import Progress
    from sae.training.plan import make_plan
    from sae.training.space import check_space, estimate

    plan = make_plan(config)
    check_space(plan)
    with Progress() as progress:
        progress.say(plan.data.opening())
    return estimate(plan)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train several autoencoders on one read of the activations and compare them in one table and one plot.

    Takes the flags of `sae train`; --variant, --k, --width, --layer, --lr and --seed take several values with commas,
    and every combination is a member. A variant may bring settings of its own: `jumprelu:recipe=anthropic`,
    `transcoder:site=mlp_in:target-site=mlp_out`, `crosscoder:layer=None:site=resid_post.6+resid_post.9`. Every member
    ends with the weights of its own `sae train`. With several --seed, variants are also compared over their seeds, as
    `sae compare` does. Run again with the same flags, it resumes where it stopped.
    """

    config: TrainConfig
    evaluate_tokens: int = 32_768
    """Held-out tokens on which members are evaluated."""
    downstream_tokens: int = 4_096
    """Held-out tokens on which the language model runs with reconstructions spliced in; 0 leaves this out."""
    controls: Literal["none", "fast", "all"] = "fast"
    """What members are compared with; see `sae eval`."""
    dry_run: bool = False
    """Print members, memory, disk and time; train nothing, write nothing."""
    members: tyro.conf.Suppress[tuple[TrainConfig, ...]] = ()
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.sweep import dry_run, run_sweep

        if self.dry_run:
            return dry_run(self.members)
        return run_sweep(self.config.out, self.members, self.evaluation())

    def evaluation(self) -> EvalConfig:
        """How the members are evaluated."""
        return EvalConfig(
            tokens=self.evaluate_tokens,
            downstream_tokens=self.downstream_tokens,
            controls=self.controls,
            device=self.config.device,
        )
