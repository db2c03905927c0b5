"""The cases of docs/scale.md: language models, GPUs and networks, from their model cards and data sheets."""

from __future__ import annotations

from typing import NamedTuple

from scripts.scale.model import Link, Machine, Rank

GPUS_A_NODE = 8


class Gpu(NamedTuple):
    """Rates of a data sheet, and the shares of them that are assumed."""

    name: str
    dense: float
    """bfloat16 FLOP/s without sparsity."""
    memory: float
    """Bytes a second."""
    capacity: float
    """Bytes."""
    dollars: float
    """For an hour, on demand."""


H100 = Gpu("H100 SXM", 989e12, 3.35e12, 80e9, 2.5)
H200 = Gpu("H200 SXM", 989e12, 4.8e12, 141e9, 3.5)
"""NVIDIA's data sheets of H100 and H200; the prices are assumptions, to be replaced by your own."""
SHARE_OF_DENSE = 0.4
"""Of the data sheet's FLOP/s, in the language model's forward pass and the encoder: assumed, not measured here."""
SHARE_OF_MEMORY = 0.7
"""Of the data sheet's memory bandwidth: assumed, not measured here."""
OF_BARE_PASS = 0.955
"""Speed of the harvest over the bare forward pass: measured here, see README."""
OVERHEAD = 5e-4
"""Seconds of launches a step: assumed."""
SPREAD = 0.05
"""Of a GPU's times from step to step: assumed; that of this machine is measured beside it."""
NVLINK = Link(5e-6, 450e9 * 0.8)
"""Between the GPUs of a node: 900 GB/s both ways (H100's data sheet), 80% of it."""
NIC = Link(15e-6, 50e9 * 0.8)
"""One 400 Gbit/s adapter a GPU (NDR InfiniBand), 80% of it."""


class Case(NamedTuple):
    """A language model and an autoencoder on it."""

    name: str
    gpu: Gpu
    parameters: float
    """That a token passes up to the site."""
    loaded: float
    """Parameters in memory: those, and the embedding."""
    d: int
    latents: int
    k: int
    rows: int
    """Of a batch."""
    tokens: float
    """Of the run."""


CASES = (
    Case("2B", H100, 1.0e9, 2.6e9, 2304, 65_536, 64, 65_536, 1e9),
    Case("70B", H200, 35e9, 37e9, 8192, 262_144, 128, 131_072, 1e9),
)
"""Gemma 2 2B at layer 12 of 26, whole, and Llama 3 70B at layer 40 of 80, cut off behind it (by their config.json)."""
SPLITS = {
    64: ((64, 1), (16, 4), (8, 8), (1, 64)),
    1024: ((1024, 1), (256, 4), (128, 8), (16, 64)),
}
"""Ranks -> (data, latent)."""


def on_gpus(data: int, latent: int, gpu: Gpu) -> Machine:
    """A rank a GPU, eight a node; latent ranks are neighbours, so they fill nodes first.

    A node's eight adapters are shared by the rings that leave it, one for each latent rank in it.
    """
    rank = Rank(OVERHEAD, SHARE_OF_DENSE * gpu.dense, SHARE_OF_MEMORY * gpu.memory, SPREAD)
    within = data * latent <= GPUS_A_NODE
    rings = min(latent, GPUS_A_NODE)
    outward = NIC._replace(bandwidth=min(NVLINK.bandwidth, NIC.bandwidth * GPUS_A_NODE / rings))
    return Machine(
        rank=rank,
        data=NVLINK if within else outward,
        latent=NVLINK if latent <= GPUS_A_NODE else NIC,
        everyone=NVLINK if within else NIC,
        model_rate=SHARE_OF_DENSE * gpu.dense * OF_BARE_PASS,
    )


def memory_of(case: Case, data: int, latent: int) -> float:
    """Bytes of a rank: the language model in bfloat16; weights, gradients and two moments in float32; its rows.

    Of the rows: inputs, reconstructions and their gradients in float32, and a block of 16 batches in float16.
    """
    rows = case.rows / data
    return 2 * case.loaded + 2 * case.latents / latent * case.d * 4 * 4 + rows * case.d * (3 * 4 + 16 * 2)
