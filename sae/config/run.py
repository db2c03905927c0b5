"""Settings of every training run, whatever it trains on: optimizer, run folder, device. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae.config.fields import BelowOne, Count, Limited, NonNegative, Positive, Share, WholeNumber

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Limited):
    """The optimizer."""

    lr: Positive | None = None
    """Peak learning rate; by default chosen from the width and the number of steps."""
    batch: Count | None = None
    """Tokens a step; by default 2048 on a CPU and 4096 on a GPU."""
    warmup: Share = 0.05
    """Share of the steps over which the rate rises from zero (at most 1000 steps)."""
    decay: Share = 0.2
    """Share of the steps over which the rate falls to zero at the end."""
    optimizer: Literal["adam", "signsgd", "muon", "adam8bit"] = "adam"
    """adam (fused), signsgd (schedule-free), muon (matrices; Adam for the rest), adam8bit (needs bitsandbytes)."""
    beta1: BelowOne | None = None
    """Adam's decay of the first moment; by default 0.9."""
    beta2: BelowOne = 0.999
    """Adam's decay of the second moment."""
    eps: Positive = 6.25e-10
    """Adam's epsilon."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How Adam's two moments of every matrix are stored: bfloat16 halves their memory, int8 (a scale a latent) quarters
    it; both are rounded at random."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """How encoder and dictionary are stored while the fused step trains them: bfloat16 is rounded at random."""
    clip: NonNegative = 4.0
    """Largest global gradient norm, in units of the activations' width; 0 turns clipping off."""
    compute: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Precision of the autoencoder's products, whatever the weights are stored in. Auto is float32 on CPU, bfloat16 on
    GPU, which alone has tf32."""

    graphs: Literal["auto", "on", "off"] = "auto"
    """Whether steps become CUDA graphs: auto where there is a GPU and shapes stand still (topk); on insists on it."""

    def ignored(self) -> dict[str, str]:
        """Settings that the optimizer does not read, each with the reason; for `refuse_ignored`."""
        if self.optimizer == "adam":
            return {}
        if self.optimizer != "signsgd":
            return dict.fromkeys(("moments", "weights"), f"--optimizer {self.optimizer} has state of its own")
        reasons = {
            "moments": "has no moments",
            "weights": "keeps averages of its own",
            "beta2": "has no second moment",
            "eps": "has no second moment",
            "clip": "takes the gradient's sign, whatever its norm",
            "decay": "averages the weights instead",
        }
        return {name: f"--optimizer signsgd {reason}" for name, reason in reasons.items()}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Limited):
    """Settings of every training run, whatever it trains on."""

    out: Path
    """Run folder to write; it must not exist yet, or --resume must be given."""
    checkpoint_every: Count = 5_000_000
    """Training tokens between two checkpoints."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints to keep."""
    resume: bool = False
    """Continue the unfinished run in --out from its newest whole checkpoint."""
    log_every: Count = 10
    """Steps between two lines of metrics.jsonl."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases; nothing leaves the machine unless this is `online`."""
    seed: WholeNumber = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""
