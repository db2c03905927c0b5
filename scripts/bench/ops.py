"""Time every op against its floor and the reference: python scripts/bench/ops.py [--json]."""

from __future__ import annotations

import tyro

from sae_kernels.bench.kernels import report_kernels


def main(
    tokens: int = 2048,
    d: int = 576,
    width: int = 9216,
    k: int = 32,
    rounds: int = 9,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Print a table, then one JSON line (with --json that line alone).

    Args:
        tokens: N, tokens a batch.
        d: model width.
        width: F, latents.
        k: latents kept a token.
        rounds: interleaved rounds, of which medians and minima are shown.
        device: cpu or cuda.
        json: the JSON line alone.
    """
    report_kernels(as_json=json, tokens=tokens, d=d, width=width, k=k, rounds=rounds, device=device)


if __name__ == "__main__":
    tyro.cli(main)
