"""Time a whole training step against the encode product alone: python scripts/bench/step.py [--json] [--curve]."""

from __future__ import annotations

import tyro

from sae_kernels.bench.step import report_step


def main(
    tokens: int = 2048,
    d: int = 576,
    width: int = 9216,
    k: int = 32,
    rounds: int = 15,
    device: str = "cpu",
    dense: bool = True,
    curve: bool = False,
    json: bool = False,
) -> None:
    """Print a table, then one JSON line (with --json that line alone).

    Args:
        tokens: N, tokens a batch.
        d: model width.
        width: F, latents (with --curve: 4k to 131k instead).
        k: latents kept a token.
        rounds: interleaved rounds, of which medians and minima are shown.
        device: cpu or cuda.
        dense: time the step in plain PyTorch too.
        curve: the step over the number of latents.
        json: the JSON line alone.
    """
    report_step(
        as_json=json, curve=curve, tokens=tokens, d=d, width=width, k=k, rounds=rounds, device=device, dense=dense
    )


if __name__ == "__main__":
    tyro.cli(main)
