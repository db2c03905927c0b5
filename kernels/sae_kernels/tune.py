"""Measure the encodes on a device: which encoder wins, with which launch parameters; kept for later processes.

    tune("topk_encode", x, W_enc, b_enc, 32)
    python -m sae_kernels.tune --tokens 8192 --d 768 --width 24576 --k 32      # all three, on random weights

What is stored for a device, F, d, k and dtype is used by every later call of the op (see tuning.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_kernels.launch import device_of
from sae_kernels.tuning import (
    Device,
    EncodeConfig,
    encode_alternatives,
    measure,
    measurement_key,
    threshold_alternatives,
)

ENCODES = ("topk_encode", "threshold_encode", "batch_topk_encode")


class Tuned(NamedTuple):
    """The result of a measurement."""

    config: EncodeConfig
    """The fastest launch parameters."""
    milliseconds: dict[str, float]
    """Of the fastest of each encoder, "fused" and "vendor"."""


def alternatives(op: str, N: int, F: int, d: int, k: int, dtype: torch.dtype, device: Device) -> list[EncodeConfig]:
    """The launch parameters of an encode that are worth timing; the first two are the rule's with either encoder.

    Raises:
        ValueError: an op that is no encode.
    """
    if op == "topk_encode":
        return encode_alternatives(N, F, d, k, dtype, device)
    if op not in ENCODES:
        raise ValueError(f"op = {op!r}: expected one of {', '.join(ENCODES)}")
    return threshold_alternatives(N, F, d, dtype, device, op=op, k=_key_k(op, k))


def _key_k(op: str, k: int) -> int:
    return 0 if op == "threshold_encode" else k


def runner(op: str, x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Callable[[EncodeConfig], Any]:
    """A call of the op with given launch parameters; thresholds are such that about k entries a token exceed them."""
    from sae_kernels.batch_topk_encode.gpu import batch_topk_encode
    from sae_kernels.threshold_encode.gpu import threshold_encode
    from sae_kernels.topk_encode.gpu import topk_encode

    if op == "topk_encode":
        return lambda config: topk_encode(x, W_enc, b_enc, k, config=config)
    values = (x[:64] @ W_enc.T).float() + b_enc
    bar = values.flatten().topk(max(1, min(values.numel(), k * values.shape[0]))).values[-1]
    if op == "batch_topk_encode":
        guess = bar.item()
        return lambda config: batch_topk_encode(x, W_enc, b_enc, k, guess=guess, config=config)
    theta = bar.expand(W_enc.shape[0]).contiguous()
    return lambda config: threshold_encode(x, W_enc, b_enc, theta, config=config)


def tune(
    op: str,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    timer: Callable[[Callable[[], Any]], float] | None = None,
) -> Tuned:
    """Time the likely launch parameters of an encode on these tensors, and store the fastest on disk.

    Args:
        op: one of `ENCODES`.
        x, W_enc, b_enc, k: see `topk_encode`; k is also the mean number of entries of the other two.
        timer: milliseconds of a call of its argument; by default triton.testing.do_bench, which needs a GPU.
    """
    import triton

    milliseconds: Callable[..., Any] = timer or triton.testing.do_bench
    (N, d), F, device = x.shape, W_enc.shape[0], device_of(x)
    run = runner(op, x, W_enc, b_enc, k)
    fastest: dict[str, float] = {}

    def time(config: EncodeConfig) -> float:
        try:
            taken = milliseconds(partial(run, config))
        except triton.runtime.errors.OutOfResources:
            return float("inf")
        encoder = "vendor" if config.vendor else "fused"
        fastest[encoder] = min(taken, fastest.get(encoder, float("inf")))
        return taken

    key = measurement_key(op, F, d, _key_k(op, k), x.dtype, device)
    return Tuned(measure(key, alternatives(op, N, F, d, k, x.dtype, device), time), fastest)


def main() -> None:
    """Tune all encodes at one size, and print a JSON line for each."""
    parser = argparse.ArgumentParser(description="Measure both encoders of every encode on this GPU.")
    for name, default in (("tokens", 8192), ("d", 768), ("width", 24_576), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    draw = torch.Generator("cuda").manual_seed(0)
    x, W_enc = (
        torch.randn(rows, given.d, device="cuda", generator=draw).bfloat16() for rows in (given.tokens, given.width)
    )
    for op in ENCODES:
        tuned = tune(op, x, W_enc, torch.zeros(given.width, device="cuda"), given.k)
        print(
            json.dumps({"op": op, **vars(given), "ms": tuned.milliseconds, "vendor": tuned.config.vendor}), flush=True
        )


if __name__ == "__main__":
    main()
