"""Settings of every training run, whatever it trains on: optimizer, run folder, device. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae.config.fields import check

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    lr: float | None = None
    """Peak learning rate; by default chosen from the width and the number of steps."""
    batch: int | None = None
    """Tokens a step; by default 2048 on a CPU and 4096 on a GPU."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from zero (at most 1000 steps)."""
    decay: float = 0.2
    """Share of the steps over which the rate falls to zero at the end."""
    optimizer: Literal["adam", "signsgd", "muon", "adam8bit"] = "adam"
    """adam (fused), signsgd (schedule-free), muon (matrices; Adam for the rest), adam8bit (needs bitsandbytes)."""
    beta1: float | None = None
    """Adam's decay of the first moment; by default 0.9."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    eps: float = 6.25e-10
    """Adam's epsilon."""
    clip: float = 4.0
    """Largest global gradient norm, in units of the activations' width; 0 turns clipping off."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the autoencoder's products; master weights stay float32. Auto is float32 on CPU, bfloat16 on GPU."""

    def __post_init__(self) -> None:
        check(self.lr is None or self.lr > 0, "lr", self.lr, "more than 0")
        check(self.batch is None or self.batch >= 1, "batch", self.batch, "at least 1 token")
        check(0 <= self.warmup <= 1, "warmup", self.warmup, "a share of the steps, 0 to 1")
        check(0 <= self.decay <= 1, "decay", self.decay, "a share of the steps, 0 to 1")
        check(self.beta1 is None or 0 <= self.beta1 < 1, "beta1", self.beta1, "0 to below 1")
        check(0 <= self.beta2 < 1, "beta2", self.beta2, "0 to below 1")
        check(self.eps > 0, "eps", self.eps, "more than 0")
        check(self.clip >= 0, "clip", self.clip, "0 or more")

    def ignored(self) -> dict[str, str]:
        """Settings that the optimizer does not read, each with the reason; for `refuse_ignored`."""
        if self.optimizer != "signsgd":
            return {}
        reasons = {
            "beta2": "has no second moment",
            "eps": "has no second moment",
            "clip": "takes the gradient's sign, whatever its norm",
            "decay": "averages the weights instead",
        }
        return {name: f"--optimizer signsgd {reason}" for name, reason in reasons.items()}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every training run, whatever it trains on."""

    out: Path
    """Run folder to write; it must not exist yet, or --resume must be given."""
    checkpoint_every: int = 5_000_000
    """Training tokens between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    resume: bool = False
    """Continue the unfinished run in --out from its newest whole checkpoint."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases; nothing leaves the machine unless this is `online`."""
    seed: int = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")
        check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "at least 1")
        check(self.log_every >= 1, "log_every", self.log_every, "at least 1 step")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
